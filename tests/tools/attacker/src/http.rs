//! Just enough of HTTP/1.1 to stand between the shim and the service: one request and one reply a
//! connection.

use anyhow::{bail, Context, Result};
use std::io::{BufRead, Read};

/// Neither a request nor a page of the service is larger.
const BODY_BYTES_MAX: u64 = 32 << 20;

/// A request or a reply: its first line, its headers and its body, free of any transfer coding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    first_line: String,
    headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Reads a request: one without a length has no body.
    pub(crate) fn read_request(stream: &mut impl BufRead) -> Result<Message> {
        let mut message = Message::read_head(stream)?;
        message.body = message.read_body(stream, 0)?;
        Ok(message)
    }

    /// Reads a reply: the body of one without a length goes on to the end of the stream.
    pub(crate) fn read_reply(stream: &mut impl BufRead) -> Result<Message> {
        let mut message = Message::read_head(stream)?;
        message.body = message.read_body(stream, BODY_BYTES_MAX)?;
        Ok(message)
    }

    /// Whether this is a request with this method.
    pub(crate) fn is_method(&self, method: &str) -> bool {
        self.first_line.split(' ').next() == Some(method)
    }

    /// The bytes to send, with the body's length in the header.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{}\r\n", self.first_line);
        for header in &self.headers {
            if !is_named(header, "content-length") && !is_named(header, "transfer-encoding") {
                head.push_str(header);
                head.push_str("\r\n");
            }
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn read_head(stream: &mut impl BufRead) -> Result<Message> {
        let first_line = read_line(stream)?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(stream)?;
            if line.is_empty() {
                break;
            }
            headers.push(line);
        }
        Ok(Message {
            first_line,
            headers,
            body: Vec::new(),
        })
    }

    fn read_body(&self, stream: &mut impl BufRead, without_length: u64) -> Result<Vec<u8>> {
        if self.value("transfer-encoding").is_some() {
            return read_chunks(stream);
        }
        let mut body = Vec::new();
        match self.value("content-length") {
            Some(length) => {
                let length: u64 = length
                    .parse()
                    .context("a content-length that is no number")?;
                stream
                    .take(length.min(BODY_BYTES_MAX))
                    .read_to_end(&mut body)?;
            }
            None => {
                stream.take(without_length).read_to_end(&mut body)?;
            }
        }
        Ok(body)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| is_named(header, name))?;
        header.split_once(':').map(|(_, value)| value.trim())
    }
}

fn is_named(header: &str, name: &str) -> bool {
    header
        .split_once(':')
        .is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.take(64 << 10).read_line(&mut line)? == 0 {
        bail!("the connection ended in the middle of a head");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).context("a chunk without a size")?;
        if size == 0 {
            while !read_line(stream)?.is_empty() {}
            return Ok(body);
        }
        if body.len() as u64 + size > BODY_BYTES_MAX {
            bail!("a body of more than {BODY_BYTES_MAX} bytes");
        }
        stream.take(size).read_to_end(&mut body)?;
        read_line(stream)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_reply_becomes_one_with_a_length() {
        let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let reply = Message::read_reply(&mut &wire[..]).unwrap();
        assert_eq!(reply.body, b"abcde");
        assert_eq!(
            reply.to_bytes(),
            b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 5\r\n\r\nabcde"
        );
    }

    #[test]
    fn a_reply_without_a_length_goes_on_to_the_end() {
        let reply = Message::read_reply(&mut &b"HTTP/1.1 200 OK\r\n\r\nabc"[..]).unwrap();
        assert_eq!(reply.body, b"abc");
    }

    #[test]
    fn a_request_without_a_length_has_no_body() {
        let request = Message::read_request(&mut &b"GET / HTTP/1.1\r\n\r\nnext"[..]).unwrap();
        assert!(request.is_method("GET") && request.body.is_empty());
    }
}

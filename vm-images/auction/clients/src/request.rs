//! What a client asks for: how much there is to ask about, and a request with what its page must say.

use spare_auction_interactions::{Interaction, Method};
use spare_client::http::{form_encode, Request};

/// How much data the service's image was filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// 1,000 users, 1,000 items on sale.
    Tiny,
    /// 100,000 users, 33,000 items on sale.
    Small,
}

impl Size {
    /// Users `user1` to this number, with passwords `password1` and so on.
    #[must_use]
    pub fn users(self) -> u64 {
        match self {
            Size::Tiny => 1_000,
            Size::Small => 100_000,
        }
    }

    /// Items on sale are numbered from 1 to this.
    #[must_use]
    pub fn items(self) -> u64 {
        match self {
            Size::Tiny => 1_000,
            Size::Small => 33_000,
        }
    }
}

/// One page to ask for, and what its `<main>` must then say.
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    pub(crate) interaction: Interaction,
    /// Names and values of the query or the form.
    pub(crate) parameters: Vec<(&'static str, String)>,
    /// Attributes that the right page has.
    pub(crate) expected: Vec<(&'static str, String)>,
}

impl PageRequest {
    /// A page without parameters of which nothing more is known.
    #[must_use]
    pub(crate) fn new(interaction: Interaction) -> PageRequest {
        PageRequest {
            interaction,
            parameters: vec![],
            expected: vec![],
        }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> PageRequest {
        self.parameters.push((name, value.to_string()));
        self
    }

    /// Adds an attribute that the right page has.
    #[must_use]
    pub(crate) fn expect(mut self, name: &'static str, value: impl ToString) -> PageRequest {
        self.expected.push((name, value.to_string()));
        self
    }

    /// The request on the wire, without what the connection adds.
    #[must_use]
    pub(crate) fn to_http(&self) -> Request {
        let pairs: Vec<(&str, &str)> = self
            .parameters
            .iter()
            .map(|(n, v)| (*n, v.as_str()))
            .collect();
        let form = form_encode(&pairs);
        let (method, path) = (self.interaction.method(), self.interaction.path());
        if method == Method::Post {
            let content_type = "application/x-www-form-urlencoded".to_owned();
            return Request {
                method: method.as_str(),
                target: path.to_owned(),
                headers: vec![("content-type", content_type)],
                body: form,
            };
        }
        let separator = if form.is_empty() { "" } else { "?" };
        Request {
            method: method.as_str(),
            target: format!("{path}{separator}{form}"),
            headers: vec![],
            body: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_carry_their_parameters_in_the_query_and_writes_in_the_body() {
        let read = PageRequest::new(Interaction::ViewItem)
            .with("id", 3)
            .to_http();
        assert_eq!((read.method, read.target.as_str()), ("GET", "/item?id=3"));
        let write = PageRequest::new(Interaction::StoreBid)
            .with("bid", "12.50")
            .to_http();
        assert_eq!((write.method, write.target.as_str()), ("POST", "/bid"));
        assert_eq!(write.body, "bid=12.50");
    }
}

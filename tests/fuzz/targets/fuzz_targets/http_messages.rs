//! libFuzzer's bytes for [`spare_fuzz::protocol::http_messages`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::http_messages);

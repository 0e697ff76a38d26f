//! libFuzzer's bytes for [`spare_fuzz::operator::server_reply`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::server_reply);

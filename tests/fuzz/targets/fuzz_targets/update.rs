//! libFuzzer's bytes for [`spare_fuzz::protocol::update`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::update);

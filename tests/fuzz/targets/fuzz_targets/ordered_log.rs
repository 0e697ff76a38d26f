//! libFuzzer's bytes for [`spare_fuzz::protocol::ordered_log`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::ordered_log);

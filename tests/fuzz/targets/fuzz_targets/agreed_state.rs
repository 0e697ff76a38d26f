//! libFuzzer's bytes for [`spare_fuzz::protocol::agreed_state`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::agreed_state);

//! libFuzzer's bytes for [`spare_fuzz::shim::database_value`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::database_value);

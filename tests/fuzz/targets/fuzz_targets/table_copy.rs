//! libFuzzer's bytes for [`spare_fuzz::shim::table_copy`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::table_copy);

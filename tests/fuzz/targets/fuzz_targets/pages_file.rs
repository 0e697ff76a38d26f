//! libFuzzer's bytes for [`spare_fuzz::operator::pages_file`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::pages_file);

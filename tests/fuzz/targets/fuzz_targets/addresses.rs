//! libFuzzer's bytes for [`spare_fuzz::operator::addresses`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::addresses);

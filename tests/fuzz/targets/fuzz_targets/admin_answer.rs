//! libFuzzer's bytes for [`spare_fuzz::operator::admin_answer`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::admin_answer);

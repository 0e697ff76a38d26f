//! libFuzzer's bytes for [`spare_fuzz::operator::replay_difference`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::replay_difference);

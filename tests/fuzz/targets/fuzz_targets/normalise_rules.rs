//! libFuzzer's bytes for [`spare_fuzz::manager::normalise_rules`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::normalise_rules);

//! libFuzzer's bytes for [`spare_fuzz::manager::manager_config`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::manager_config);

//! libFuzzer's bytes for [`spare_fuzz::shim::guest_config`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::guest_config);

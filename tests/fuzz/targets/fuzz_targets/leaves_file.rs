//! libFuzzer's bytes for [`spare_fuzz::shim::leaves_file`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::leaves_file);

//! libFuzzer's bytes for [`spare_fuzz::shim::change_stream`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::change_stream);

//! libFuzzer's bytes for [`spare_fuzz::shim::service_reply`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::shim::service_reply);

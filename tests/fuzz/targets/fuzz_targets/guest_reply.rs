//! libFuzzer's bytes for [`spare_fuzz::manager::guest_reply`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::guest_reply);

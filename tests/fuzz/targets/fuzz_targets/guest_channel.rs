//! libFuzzer's bytes for [`spare_fuzz::manager::guest_channel`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::guest_channel);

//! libFuzzer's bytes for [`spare_fuzz::protocol::manager_frames`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::manager_frames);

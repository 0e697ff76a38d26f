//! libFuzzer's bytes for [`spare_fuzz::host::guest_console`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::host::guest_console);

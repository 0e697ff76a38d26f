//! libFuzzer's bytes for [`spare_fuzz::manager::client_connection`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::client_connection);

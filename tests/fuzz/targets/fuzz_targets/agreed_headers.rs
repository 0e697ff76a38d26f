//! libFuzzer's bytes for [`spare_fuzz::service::agreed_headers`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::service::agreed_headers);

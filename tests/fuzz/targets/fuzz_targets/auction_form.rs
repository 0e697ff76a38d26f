//! libFuzzer's bytes for [`spare_fuzz::service::auction_form`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::service::auction_form);

//! libFuzzer's bytes for [`spare_fuzz::operator::auction_page`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::operator::auction_page);

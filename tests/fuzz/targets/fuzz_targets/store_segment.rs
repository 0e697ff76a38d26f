//! libFuzzer's bytes for [`spare_fuzz::store::store_segment`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::store::store_segment);

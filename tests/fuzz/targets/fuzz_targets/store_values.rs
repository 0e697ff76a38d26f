//! libFuzzer's bytes for [`spare_fuzz::store::store_values`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::store::store_values);

//! libFuzzer's bytes for [`spare_fuzz::manager::events_query`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::manager::events_query);

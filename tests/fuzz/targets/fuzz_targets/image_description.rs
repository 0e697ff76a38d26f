//! libFuzzer's bytes for [`spare_fuzz::host::image_description`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::host::image_description);

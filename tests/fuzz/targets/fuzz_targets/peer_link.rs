//! libFuzzer's bytes for [`spare_fuzz::peers::peer_link`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::peers::peer_link);

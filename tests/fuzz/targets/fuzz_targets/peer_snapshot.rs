//! libFuzzer's bytes for [`spare_fuzz::peers::peer_snapshot`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::peers::peer_snapshot);

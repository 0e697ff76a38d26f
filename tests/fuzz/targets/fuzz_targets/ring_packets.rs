//! libFuzzer's bytes for [`spare_fuzz::peers::ring_packets`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::peers::ring_packets);

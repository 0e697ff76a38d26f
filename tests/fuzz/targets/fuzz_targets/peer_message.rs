//! libFuzzer's bytes for [`spare_fuzz::protocol::peer_message`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::protocol::peer_message);

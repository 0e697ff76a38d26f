//! libFuzzer's bytes for [`spare_fuzz::host::agent_config`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::host::agent_config);

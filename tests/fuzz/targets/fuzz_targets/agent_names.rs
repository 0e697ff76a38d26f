//! libFuzzer's bytes for [`spare_fuzz::host::agent_names`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::host::agent_names);

//! libFuzzer's bytes for [`spare_fuzz::peers::corosync_conf`].
#![no_main]
spare_fuzz::libfuzzer!(spare_fuzz::peers::corosync_conf);

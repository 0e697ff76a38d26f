//! The store on disks that fail: below it is [`faulty_disk`], which can refuse any write and any sync, and
//! which after a crash has lost, torn and reordered whatever was not synced.

mod bit_flips;
mod crashes;
mod faulty_disk;
mod model;
mod upgrade;
mod whole;

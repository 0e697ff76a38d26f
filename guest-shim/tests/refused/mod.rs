//! What PostgreSQL can do besides changing rows: each is carried, harmless, or an error to the service
//! (`docs/operators/database.md`); none breaks a replica.

use crate::{apply, pair, scrub, write};
use spare_protocol::channel::RootRequest;
use spare_protocol::update::Update;
use std::collections::BTreeSet;

/// Refused by the guard of sessions, or because no privilege is left: always SQLSTATE 42501.
const REFUSED: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS own (id int PRIMARY KEY)",
    "CREATE TEMPORARY TABLE t (id int PRIMARY KEY)",
    "CREATE UNLOGGED TABLE t (id int PRIMARY KEY)",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "SELECT 1 AS id INTO t",
    "SELECT 1 AS id INTO TEMP t",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "PREPARE q AS SELECT 1; CREATE TABLE t AS EXECUTE q",
    "ALTER TABLE own ADD COLUMN w int",
    "ALTER TABLE own SET UNLOGGED",
    "ALTER TABLE own DISABLE TRIGGER ALL",
    "ALTER TABLE own REPLICA IDENTITY NOTHING",
    "ALTER TABLE own DROP CONSTRAINT spare_row_bytes",
    "DROP TABLE owned",
    "DROP TRIGGER spare_truncate ON own",
    "CREATE INDEX ON own (v)",
    "REINDEX TABLE own",
    "CLUSTER own USING own_pkey",
    "CREATE VIEW w AS SELECT 1",
    "CREATE MATERIALIZED VIEW w AS SELECT 1",
    "REFRESH MATERIALIZED VIEW nothing",
    "CREATE SEQUENCE another",
    "CREATE TEMP SEQUENCE another",
    "ALTER SEQUENCE own_id_seq CACHE 20",
    "ALTER SEQUENCE own_id_seq RESTART",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TRIGGER t AFTER INSERT ON own EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE r AS ON INSERT TO own DO INSTEAD NOTHING",
    "CREATE POLICY p ON own",
    "CREATE STATISTICS s ON id, v FROM own",
    "CREATE TYPE mood AS ENUM ('ok')",
    "CREATE DOMAIN d AS int",
    "CREATE SCHEMA another",
    "CREATE EXTENSION hstore",
    "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f()",
    "CREATE PUBLICATION p",
    "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false)",
    "CREATE SERVER s FOREIGN DATA WRAPPER w",
    "CREATE LANGUAGE plperl",
    "CREATE COLLATION c FROM \"C\"",
    "CREATE CAST (int AS text) WITH INOUT",
    "COMMENT ON TABLE own IS 'mine'",
    "SECURITY LABEL ON TABLE own IS 'mine'",
    "GRANT SELECT ON own TO PUBLIC",
    "REVOKE SELECT ON own FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "DROP OWNED BY app",
    "REASSIGN OWNED BY app TO postgres",
    "CREATE ROLE r",
    "ALTER ROLE app SET work_mem = '64kB'",
    "ALTER ROLE app PASSWORD 'x'",
    "ALTER DATABASE app SET work_mem = '64kB'",
    "ALTER SYSTEM SET work_mem = '64kB'",
    "ALTER SYSTEM RESET session_preload_libraries",
    "CREATE DATABASE d",
    "CREATE TABLESPACE t LOCATION '/tmp'",
    "IMPORT FOREIGN SCHEMA s FROM SERVER s INTO public",
    "CHECKPOINT",
    "LOAD 'dblink'",
    "NOTIFY news, 'text'",
    "LISTEN news",
    "BEGIN; INSERT INTO own (v) VALUES ('p'); PREPARE TRANSACTION 'x'",
    "COPY own TO '/tmp/own'",
    "COPY own FROM '/etc/passwd'",
    "COPY own TO PROGRAM 'cat'",
    "DO 'BEGIN CREATE TABLE t (id int); END'",
    "SELECT lo_from_bytea(4711, 'abc')",
    "SELECT lo_create(4711)",
    "SELECT lo_creat(-1)",
    "SELECT lo_put(4711, 0, 'abc')",
    "SELECT lo_unlink(4711)",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(4711, '/tmp/x')",
    "SELECT pg_notify('news', 'text')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_lock_shared(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1, 2)",
    "SELECT pg_logical_emit_message(true, 'spare.flush', '')",
    "SELECT pg_logical_emit_message(false, 'x', repeat('x', 100))",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "SELECT pg_export_snapshot()",
    "SELECT pg_drop_replication_slot('spare')",
    "SELECT pg_replication_slot_advance('spare', pg_current_wal_lsn())",
    "SELECT pg_logical_slot_get_changes('spare', NULL, NULL)",
    "SELECT pg_replication_origin_session_setup('spare')",
    "SELECT pg_replication_origin_drop('spare')",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_restore_point('x')",
    "SELECT pg_stat_reset()",
    "SELECT pg_import_system_collations('public')",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')",
    "SET session_replication_role = replica",
    "SET session_preload_libraries = ''",
    "SET SESSION AUTHORIZATION postgres",
    "SET ROLE postgres",
    "UPDATE pg_index SET indisunique = false",
    "INSERT INTO pg_largeobject VALUES (1, 0, 'x')",
];

/// Carried: what they change in rows and sequences is in the update. Or harmless: they change nothing that
/// another request can meet, or only what ends with their session.
const DONE: &[&str] = &[
    "INSERT INTO own (v) VALUES ('a'), ('b'); INSERT INTO owned SELECT 1, max(id) FROM own",
    "MERGE INTO own USING (SELECT max(id) AS id FROM own) s ON own.id = s.id WHEN MATCHED THEN UPDATE SET v = 'm'",
    "TRUNCATE own CASCADE",
    "INSERT INTO own (v) VALUES ('c'); INSERT INTO owned SELECT 5, id FROM own",
    "TRUNCATE owned, own RESTART IDENTITY",
    "INSERT INTO own (v) VALUES ('d')",
    "BEGIN; INSERT INTO own (v) VALUES ('e'); TRUNCATE own RESTART IDENTITY CASCADE; ROLLBACK",
    "SELECT setval('own_id_seq', 100)",
    "SELECT setval('own_id_seq', 200, false)",
    "SELECT nextval('own_id_seq'), nextval('cached'), nextval('loose')",
    "BEGIN; SAVEPOINT s; INSERT INTO own (v) VALUES ('f'); ROLLBACK TO s; RELEASE s; COMMIT",
    "DO 'BEGIN INSERT INTO own (v) VALUES (''g''); COMMIT; INSERT INTO own (v) VALUES (''h''); END'",
    "PREPARE p AS INSERT INTO own (v) VALUES ('i'); EXECUTE p; DEALLOCATE p",
    "BEGIN; DECLARE c CURSOR FOR SELECT * FROM own FOR UPDATE; FETCH c; \
        UPDATE own SET v = 'j' WHERE CURRENT OF c; CLOSE c; COMMIT",
    "BEGIN; LOCK TABLE own IN ACCESS EXCLUSIVE MODE; SELECT pg_advisory_xact_lock(1); COMMIT",
    "SET work_mem = '1MB'; SET LOCAL timezone = 'UTC'; SELECT set_config('app.x', 'y', false); RESET work_mem",
    "SET CONSTRAINTS ALL DEFERRED",
    "DISCARD ALL",
    "UNLISTEN *",
    "ANALYZE own",
    "VACUUM own",
    "VACUUM FULL own",
    "INSERT INTO own (v) SELECT current_setting('server_encoding')",
    "SET synchronous_commit = off; INSERT INTO own (v) VALUES ('k'); SET synchronous_commit = on",
    "SELECT txid_current(); SELECT pg_sleep(0); SELECT setseed(0.5)",
];

#[test]
fn every_effect_is_carried_or_harmless_or_refused() {
    let Some((one, mut active, _two, mut passive)) = pair("effects") else {
        return;
    };
    let mut position = 0;
    for sql in REFUSED {
        position += 1;
        let (answer, update, _) = write(&mut active, position, sql, RootRequest::No);
        assert_eq!(answer, "error 42501", "{sql}");
        // The one that was rolled back has taken a key.
        if !sql.contains("INSERT INTO own") {
            assert_eq!(Update::from_bytes(&update), Ok(Update::default()), "{sql}");
        }
        let applied = apply(
            &mut passive,
            &[(position, update)],
            position,
            RootRequest::No,
        );
        assert_eq!(applied.0, position);
    }
    let mut root = None;
    for sql in DONE {
        position += 1;
        let (answer, update, r) = write(&mut active, position, sql, RootRequest::Incremental);
        assert_eq!(answer, "done", "{sql}");
        root = r;
        let applied = apply(
            &mut passive,
            &[(position, update)],
            position,
            RootRequest::Incremental,
        );
        assert_eq!(applied, (position, root), "{sql}");
    }
    for manager in [&mut active, &mut passive] {
        let scanned = scrub(manager, position + 1, RootRequest::FullScan);
        assert_eq!(Some(scanned), root);
    }
    let next = "INSERT INTO own (v) SELECT nextval('cached') || ' ' || nextval('loose')";
    let expected = write(&mut active, position + 2, next, RootRequest::Incremental);
    let given = write(&mut passive, position + 2, next, RootRequest::Incremental);
    assert_eq!(given, expected, "the same keys");
    assert!(!std::path::Path::new("/tmp/own").exists());
    let cache = one.query("SELECT DISTINCT seqcache FROM pg_sequence");
    assert_eq!(cache.trim(), "1");
}

/// Volatile functions that the service may call, by what they do.
const HARMLESS: &[&str] = &[
    // Called by the server itself, or only by a server that is being upgraded.
    "RI_FKey_cascade_del RI_FKey_cascade_upd RI_FKey_check_ins RI_FKey_check_upd RI_FKey_noaction_del \
     RI_FKey_noaction_upd RI_FKey_restrict_del RI_FKey_restrict_upd RI_FKey_setdefault_del RI_FKey_setdefault_upd \
     RI_FKey_setnull_del RI_FKey_setnull_upd amvalidate bernoulli binary_upgrade_create_empty_extension \
     binary_upgrade_set_missing_value binary_upgrade_set_next_array_pg_type_oid \
     binary_upgrade_set_next_heap_pg_class_oid binary_upgrade_set_next_heap_relfilenode \
     binary_upgrade_set_next_index_pg_class_oid binary_upgrade_set_next_index_relfilenode \
     binary_upgrade_set_next_multirange_array_pg_type_oid binary_upgrade_set_next_multirange_pg_type_oid \
     binary_upgrade_set_next_pg_authid_oid binary_upgrade_set_next_pg_enum_oid \
     binary_upgrade_set_next_pg_tablespace_oid binary_upgrade_set_next_pg_type_oid \
     binary_upgrade_set_next_toast_pg_class_oid binary_upgrade_set_next_toast_relfilenode \
     binary_upgrade_set_record_init_privs brinhandler bthandler dsnowball_init dsnowball_lexize ginhandler gisthandler \
     hashhandler heap_tableam_handler plpgsql_call_handler plpgsql_inline_handler plpgsql_validator spghandler \
     suppress_redundant_updates_trigger system tsvector_update_trigger tsvector_update_trigger_column \
     unique_key_recheck",
    // Tidy up an index; its content stays.
    "brin_desummarize_range brin_summarize_new_values brin_summarize_range gin_clean_pending_list",
    // Answer from clocks, chance or the state of the server: not to be used in a page.
    "clock_timestamp current_query gen_random_uuid pg_blocking_pids pg_collation_actual_version pg_control_checkpoint \
     pg_control_init pg_control_recovery pg_control_system pg_current_wal_flush_lsn pg_current_wal_insert_lsn \
     pg_current_wal_lsn pg_database_collation_actual_version pg_database_size pg_get_multixact_members \
     pg_get_wal_replay_pause_state pg_get_wal_resource_managers pg_indexes_size pg_is_in_recovery pg_is_wal_replay_paused \
     pg_isolation_test_session_is_blocked pg_jit_available pg_last_committed_xact pg_last_wal_receive_lsn \
     pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_lock_status pg_notification_queue_usage \
     pg_partition_ancestors pg_partition_tree pg_prepared_xact pg_relation_size pg_safe_snapshot_blocking_pids \
     pg_sequence_last_value pg_stat_clear_snapshot pg_stat_force_next_flush pg_stat_get_recovery_prefetch \
     pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit pg_stat_get_xact_function_calls \
     pg_stat_get_xact_function_self_time pg_stat_get_xact_function_total_time pg_stat_get_xact_numscans \
     pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched pg_stat_get_xact_tuples_hot_updated \
     pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_returned pg_stat_get_xact_tuples_updated pg_table_size \
     pg_tablespace_size pg_total_relation_size pg_xact_commit_timestamp pg_xact_commit_timestamp_origin pg_xact_status \
     random timeofday txid_status",
    // Read by queries that they are given.
    "currtid2 cursor_to_xml cursor_to_xmlschema query_to_xml query_to_xml_and_xmlschema query_to_xmlschema ts_rewrite \
     ts_stat",
    // Carried.
    "nextval setval",
    // The state of their session, or a lock that ends with the transaction.
    "currval lastval pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock \
     pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared set_config setseed",
    "pg_sleep pg_sleep_for pg_sleep_until",
    // Refused by themselves to who is no superuser or has no right to replicate.
    "pg_copy_logical_replication_slot pg_copy_physical_replication_slot pg_create_logical_replication_slot \
     pg_create_physical_replication_slot pg_drop_replication_slot pg_extension_config_dump pg_import_system_collations \
     pg_logical_slot_get_binary_changes pg_logical_slot_get_changes pg_logical_slot_peek_binary_changes \
     pg_logical_slot_peek_changes pg_nextoid pg_read_file_old pg_replication_slot_advance pg_rotate_logfile_old \
     pg_stop_making_pinned_objects",
];

#[test]
fn no_function_with_an_effect_is_left_to_the_service() {
    let Some((one, _, _two, _)) = pair("functions") else {
        return;
    };
    let allowed = one.query(
        "SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v' AND prokind = 'f' \
         AND pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege('app', oid, 'EXECUTE')",
    );
    let allowed: BTreeSet<&str> = allowed.split_whitespace().collect();
    let known: BTreeSet<&str> = HARMLESS.iter().flat_map(|l| l.split_whitespace()).collect();
    assert_eq!(
        allowed.difference(&known).collect::<Vec<_>>(),
        Vec::<&&str>::new()
    );
}

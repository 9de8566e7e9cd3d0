import { describe, expect, it } from 'vitest';
import { FRAME_HEADER, frame } from '../../codecs/tds/frames.js';
import { SQL_BATCH } from '../../codecs/tds/packet.js';
import { writeSqlBatch } from '../../codecs/tds/request.js';
import { understand, type View } from '../../codecs/tds/requests.js';
import { onlyTells, readBatch } from '../../codecs/tds/sql.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';

const IDLE: View = {
  dialect: TDS_7_4,
  open: false,
  depth: 0,
  implicit: false,
  unsure: false,
  aborting: false,
  idle: false,
  savepoints: new Set(['here']),
  prepared: () => undefined,
};
const OPEN: View = { ...IDLE, open: true, depth: 1 };
const INNER: View = { ...OPEN, depth: 2 };

/** How the core understands a batch. */
function effect(text: string, view: View): string {
  const bytes = frame(SQL_BATCH, writeSqlBatch(0n, text));
  expect(bytes.length).toBeGreaterThan(FRAME_HEADER);
  const { effect, writes, provable } = understand(bytes, 0, bytes.length, view);
  return `${effect}${writes ? ' writes' : ''}${provable ? '' : ' unclear'}`;
}

describe('outside of a transaction', () => {
  it.each([
    ['', 'read'],
    ['SELECT 1', 'read'],
    ['-- INSERT\n/* DELETE /* UPDATE */ DROP */ SELECT [insert], "delete", \'update\' FROM t', 'read'],
    ["SELECT N'it''s', t.[update], t.delete FROM t", 'read'],
    ['WITH a AS (SELECT 1 AS b) SELECT * FROM a INNER MERGE JOIN c ON 1 = 1 OPTION (MERGE JOIN)', 'read'],
    ['DECLARE @a int = 1; SET @a = 2; IF @a > 1 SELECT @a ELSE PRINT 1', 'read'],
    ['SELECT 1 INTO kept', 'write writes'],
    ['SELECT 1 INTO #kept', 'session'],
    ['SELECT NEXT VALUE FOR s', 'write writes'],
    ['INSERT INTO t SELECT 1', 'write writes'],
    ['insert t values (1)', 'write writes'],
    ['WITH a AS (SELECT 1 AS b) UPDATE t SET b = 1 FROM a', 'write writes'],
    [
      'MERGE t USING s ON a = b WHEN MATCHED THEN UPDATE SET c = 1 WHEN NOT MATCHED THEN INSERT VALUES (1);',
      'write writes',
    ],
    ['CREATE TABLE t (a int REFERENCES b ON DELETE CASCADE ON UPDATE NO ACTION)', 'write writes'],
    ['CREATE TABLE #t (a int)', 'session'],
    ['CREATE PROCEDURE p AS BEGIN TRAN; INSERT t VALUES (1); COMMIT', 'write writes'],
    ['CREATE OR ALTER VIEW v AS SELECT 1 AS a', 'write writes'],
    ['CREATE DATABASE d', 'opaque writes unclear'],
    ['SET NOCOUNT ON', 'session'],
    ['USE other', 'session'],
    ['EXEC p', 'opaque writes unclear'],
    ['EXEC @a = dbo.p 1', 'opaque writes unclear'],
    ['p 1', 'opaque writes unclear'],
    ['[my].[p] 1', 'opaque writes unclear'],
    ['sp_who', 'read'],
    ['EXEC sys.sp_columns t', 'read'],
    ['INSERT INTO t EXEC p', 'opaque writes unclear'],
    ["SELECT * FROM OPENQUERY(a, 'DELETE b')", 'opaque writes unclear'],
    ['BACKUP DATABASE d TO DISK = 1', 'opaque writes unclear'],
    ['BEGIN TRAN', 'begin'],
    ['begin transaction t; INSERT u VALUES (1)', 'begin writes'],
    ['IF @@TRANCOUNT = 0 BEGIN TRANSACTION', 'begin'],
    ['INSERT u VALUES (1); BEGIN TRAN', 'opaque writes unclear'],
    ['BEGIN TRAN; INSERT u VALUES (1); COMMIT', 'opaque writes unclear'],
    ['COMMIT', 'read'],
    ['BEGIN SELECT 1 END', 'read'],
    ['INSERT BULK t (a int)', 'session'],
  ])('%s', (text, wanted) => {
    expect(effect(text, IDLE)).toBe(wanted);
  });
});

describe('in a transaction', () => {
  it.each([
    ['SELECT 1', 'read'],
    ['INSERT t VALUES (1)', 'write writes'],
    ['COMMIT', 'commit'],
    ['COMMIT TRANSACTION t', 'commit'],
    ['IF @@TRANCOUNT > 0 COMMIT TRAN', 'commit'],
    ['ROLLBACK WORK', 'rollback'],
    ['ROLLBACK TRAN here', 'read'],
    ['SAVE TRAN there', 'read'],
    ['BEGIN TRAN', 'read'],
    ['INSERT t VALUES (1); COMMIT', 'commit writes unclear'],
    ['ROLLBACK; SELECT 1', 'commit writes unclear'],
    ['EXEC p', 'commit writes unclear'],
  ])('%s', (text, wanted) => {
    expect(effect(text, OPEN)).toBe(wanted);
  });

  it('ends none within another one', () => {
    expect(effect('COMMIT', INNER)).toBe('read');
    expect(effect('ROLLBACK', INNER)).toBe('rollback');
    expect(effect('IF @@TRANCOUNT > 0 COMMIT', INNER)).toBe('commit');
  });
});

it('begins one by itself with IMPLICIT_TRANSACTIONS', () => {
  const view = { ...IDLE, implicit: true };
  expect(effect('SELECT 1', view)).toBe('read');
  expect(effect('SELECT a FROM t', view)).toBe('begin');
  expect(effect('DELETE t', view)).toBe('begin writes');
});

it('tells what a batch does to the session', () => {
  const facts = readBatch(
    'SET ANSI_NULLS, ANSI_PADDING ON SET LOCK_TIMEOUT -1; SET TRANSACTION ISOLATION LEVEL SNAPSHOT; USE [my db] ' +
      'CREATE TABLE #a (b int); DROP TABLE #c; SET TEXTSIZE @size; DECLARE c CURSOR FOR SELECT 1; EXECUTE AS USER = 1',
  );
  expect(facts.settings).toEqual([
    { option: 'ANSI_NULLS', text: 'SET ANSI_NULLS ON' },
    { option: 'ANSI_PADDING', text: 'SET ANSI_PADDING ON' },
    { option: 'LOCK_TIMEOUT', text: 'SET LOCK_TIMEOUT -1' },
    { option: 'ISOLATION', text: 'SET TRANSACTION ISOLATION LEVEL SNAPSHOT' },
  ]);
  expect(facts.database).toBe('my db');
  expect([facts.made, facts.dropped]).toEqual([['#a'], ['#c']]);
  expect(facts.unknown).toEqual(['setting TEXTSIZE', 'cursor', 'execution context']);
});

it('knows procedures that only tell something, however they are called', () => {
  expect(['sp_tables', '[sys].[sp_tables]', 'master..sp_tables', 'SP_TABLES'].every(onlyTells)).toBe(true);
  expect(['sp_executesql', 'tables', 'sp_tables2'].some(onlyTells)).toBe(false);
});

it('remembers what texts do, and not all of them', () => {
  const once = readBatch('SELECT 1 AS remembered');
  expect(readBatch('SELECT 1 AS remembered')).toBe(once);
  for (let i = 0; i < 3000; i++) readBatch(`SELECT ${i}`);
  const again = readBatch('SELECT 1 AS remembered');
  expect(again).not.toBe(once);
  expect(again).toEqual(once);
});

it('tells what a session keeps behind a procedure in which the text stands', () => {
  const lasting = (sql: string) => readBatch(sql).lasting;
  const lock = ['application lock'];
  expect(lasting("EXEC sp_getapplock 'r', 'Exclusive', 'Session'")).toEqual(lock);
  expect(
    lasting("DECLARE @rc int; EXEC @rc = sys.sp_getapplock @Resource = N'r', @LockOwner = N'session'; SELECT @rc"),
  ).toEqual(lock);
  expect(lasting("EXEC sp_getapplock @LockMode = 'Shared', @LockOwner = @owner, @Resource = 'r'")).toEqual(lock);
  // By default it is the transaction's.
  expect(lasting("EXEC sp_getapplock @Resource = 'Session', @LockMode = 'Exclusive'")).toEqual([]);
  expect(lasting("sp_getapplock 'r', 'Exclusive', 'Transaction' SELECT 'Session'")).toEqual([]);
  expect(lasting("EXEC [sys].[sp_set_session_context] N'k', @v")).toEqual(['session context']);
  expect(lasting('SET CONTEXT_INFO @v; SET LOCK_TIMEOUT @t')).toEqual(['setting CONTEXT_INFO']);
  expect(readBatch('SET CONTEXT_INFO 0x12').lasting).toEqual([]);
});

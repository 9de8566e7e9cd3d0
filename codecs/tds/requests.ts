/** What a client asks for, as the core understands it. */

import { type Effect, ProtocolViolation, type Request } from '../../core/contract/index.js';
import { FRAME_HEADER } from './frames.js';
import { BULK_LOAD, RESETCONNECTION, RESETCONNECTIONSKIPTRAN, RPC, SQL_BATCH, TRANSACTION_MANAGER } from './packet.js';
import {
  ISOLATION_LEVELS,
  readSqlBatch,
  readTransactionRequest,
  sqlText,
  TM_BEGIN_XACT,
  TM_COMMIT_XACT,
  TM_GET_DTC_ADDRESS,
  TM_PROMOTE_XACT,
  TM_PROPAGATE_XACT,
  TM_ROLLBACK_XACT,
  TM_SAVE_XACT,
  transactionRequestName,
} from './request.js';
import {
  parameterInteger,
  parameterText,
  type RpcCall,
  readRpc,
  SP_CURSOR,
  SP_CURSORCLOSE,
  SP_CURSOREXECUTE,
  SP_CURSORFETCH,
  SP_CURSOROPEN,
  SP_CURSOROPTION,
  SP_CURSORPREPARE,
  SP_CURSORPREPEXEC,
  SP_CURSORUNPREPARE,
  SP_EXECUTE,
  SP_EXECUTESQL,
  SP_PREPARE,
  SP_PREPEXEC,
  SP_PREPEXECRPC,
  SP_UNPREPARE,
  statementText,
  wellKnown,
} from './rpc.js';
import { type BatchFacts, keptBehind, onlyTells, readBatch } from './sql.js';
import { type Dialect, TDS_7_3 } from './version.js';

/** A statement that was prepared: its parameters' declaration and its text. */
export interface Prepared {
  readonly declaration: string;
  readonly text: string;
  /** It opens a cursor when it is executed. */
  readonly cursor: boolean;
}

/** What of the session an understanding depends on. */
export interface View {
  readonly dialect: Dialect;
  /** A transaction is open as far as is known. */
  readonly open: boolean;
  /** BEGINs without their COMMITs; null when that is not known. */
  readonly depth: number | null;
  /** SET IMPLICIT_TRANSACTIONS ON. */
  readonly implicit: boolean;
  /** Whether it is ON cannot be told. */
  readonly unsure: boolean;
  /** SET XACT_ABORT ON, as far as can be told: what fails ends the transaction. */
  readonly aborting: boolean;
  /** Nothing is run of what is told. */
  readonly idle: boolean;
  readonly savepoints: ReadonlySet<string>;
  /** The statement behind a handle of the client's. */
  prepared(handle: number): Prepared | undefined;
}

/** A place in a frame where a handle stands that was given out by a server, and what the client believes it to be. */
export interface HandleUse {
  /** From the start of the frame. */
  readonly at: number;
  readonly handle: number;
  readonly cursor: boolean;
}

/** One message of a client that is answered by one message. */
export class TdsRequest implements Request {
  label = '';
  effect: Effect = 'read';
  writes = false;
  guardable = false;
  mustGuard = false;
  joined = false;
  barrier = false;
  provable = true;
  /** What its text does; null without one. */
  facts: BatchFacts | null = null;
  /** A Transaction Manager request's type; -1 for others. */
  manager = -1;
  /** The isolation level that it sets, in words; null when none. */
  isolation: string | null = null;
  /** The text of an INSERT BULK, which announces a bulk load. */
  bulk: string | null = null;
  /** The savepoint that it makes. */
  saves: string | null = null;
  /** The session is reset before it ... */
  reset = false;
  /** ... and its transaction is rolled back. */
  renews = false;
  /** The text stands in a procedure, behind whose end SETs and USE are undone. */
  nested = false;
  uses: HandleUse | null = null;
  /** It prepares this, and answers with the handle. */
  prepares: Prepared | null = null;
  /** It answers with the handle of a cursor in the parameter of this number; -1 when it opens none. */
  cursorAt = -1;
  /** The handle (of a statement or cursor) that it takes away. */
  closes: HandleUse | null = null;
  /** It may begin or end a transaction by its text. */
  decides = false;
  /** The handle that the client was given for a statement: the same one when it is repeated. */
  handle: number | null = null;
  /** The same of a cursor. */
  cursor: number | null = null;
  /** The descriptor that the client was given: the same one when it is repeated. */
  descriptor: bigint | null = null;
  /** The descriptor of the transaction that it rolls back with its reset, as the client knows it. */
  rollsBack: bigint | null = null;
  /** Something of the session may be changed so that nobody can tell. */
  readonly unknown: string[] = [];

  constructor(readonly kind: string) {}
}

/** Understands the frame [start, end) of a client's message. */
export function understand(bytes: Uint8Array, start: number, end: number, view: View): TdsRequest {
  const from = start + FRAME_HEADER;
  const reset = bytes[start + 1] & (RESETCONNECTION | RESETCONNECTIONSKIPTRAN);
  let request: TdsRequest;
  switch (bytes[start]) {
    case SQL_BATCH: {
      request = new TdsRequest('batch');
      const sql = sqlText(readSqlBatch(bytes, from, end, view.dialect));
      const facts = readBatch(sql);
      text(request, facts, view);
      if (facts.bulk && facts.statements === 1) {
        // What it announces writes, and not this.
        request.bulk = sql;
        request.effect = 'session';
        request.writes = false;
      } else if (facts.bulk) unclear(request, view.open);
      break;
    }
    case RPC:
      request = new TdsRequest('rpc');
      rpc(request, bytes, start, end, view);
      break;
    case TRANSACTION_MANAGER:
      request = new TdsRequest('transaction');
      manager(request, bytes, from, end, view);
      break;
    case BULK_LOAD:
      request = new TdsRequest('bulk load');
      request.label = 'INSERT BULK';
      request.effect = 'write';
      request.writes = true;
      break;
    default:
      throw new ProtocolViolation('a message comes that has no place in a session', 'client');
  }
  if (reset !== 0) {
    request.reset = true;
    // A transaction around it would be rolled back where there is no other word for it.
    if (view.dialect < TDS_7_3) request.guardable = false;
    if (reset === RESETCONNECTION) {
      // An open transaction is rolled back by it. What the text does behind that is done for good.
      request.renews = true;
      if (view.open && (request.decides || (request.effect !== 'read' && request.effect !== 'session'))) {
        unclear(request, true);
      }
    }
  }
  return request;
}

/** The request may do anything to the transaction. */
function unclear(request: TdsRequest, open: boolean): void {
  // In an open transaction it may be what ends it; whether it was shows in its answer.
  request.effect = open ? 'commit' : 'opaque';
  request.provable = false;
  request.writes = true;
  request.decides = true;
}

function text(request: TdsRequest, facts: BatchFacts, view: View): void {
  const { control } = facts;
  request.facts = facts;
  request.label = facts.label || 'empty batch';
  if (facts.opaque) {
    unclear(request, view.open);
    return;
  }
  request.writes = facts.writes;
  const [first] = control;
  if (first === undefined) {
    const session =
      facts.settings.length + facts.unknown.length + facts.lasting.length + facts.made.length + facts.dropped.length >
      0;
    request.effect = facts.writes ? 'write' : session || facts.database !== null || facts.bulk ? 'session' : 'read';
    if (view.implicit && !view.open && facts.touchesTables) {
      request.effect = 'begin';
      request.decides = true;
    } else request.guardable = guardable(facts, view);
    return;
  }
  request.decides = true;
  const alone = control.length === 1;
  const orderly = !facts.conditional || facts.statements === 1;
  if (first.verb === 'begin' && alone && orderly && facts.label === 'BEGIN TRANSACTION') {
    if (!view.open) request.effect = 'begin';
    else request.effect = facts.writes ? 'write' : 'read';
    return;
  }
  const savepoint = (name: string) => name !== '' && view.savepoints.has(name);
  if (control.every(({ verb, name }) => verb === 'save' || (verb === 'rollback' && savepoint(name)))) {
    request.effect = facts.writes ? 'write' : 'read';
    return;
  }
  if (alone && facts.statements === 1) {
    if (first.verb === 'commit') {
      // Within others it ends nothing.
      const inner = view.depth !== null && view.depth > 1 && !facts.conditional;
      request.effect = inner || !view.open ? 'read' : 'commit';
      request.provable = !view.idle;
      return;
    }
    if (first.verb === 'rollback') {
      request.effect = view.open ? 'rollback' : 'read';
      return;
    }
  }
  unclear(request, view.open);
}

/**
 * Does it do the same in a transaction of the gateway's own, committed whatever fails in it? With XACT_ABORT ON a failure takes all with it, and so
 * more than one change does not.
 */
function guardable(facts: BatchFacts, { aborting, unsure }: View): boolean {
  const { changes, solitary, settings, database, unknown, lasting } = facts;
  if (solitary || unsure || database !== null || unknown.length + lasting.length > 0) return false;
  if (aborting && changes > 1) return false;
  return settings.every(({ option }) => option === 'NOCOUNT');
}

function manager(request: TdsRequest, bytes: Uint8Array, from: number, end: number, view: View): void {
  const { type, next, isolation, name } = readTransactionRequest(bytes, from, end, view.dialect);
  request.manager = type;
  request.label = transactionRequestName(type);
  const { open, depth, savepoints } = view;
  switch (type) {
    case TM_BEGIN_XACT:
      request.effect = open ? 'read' : 'begin';
      if (isolation !== null && isolation > 0) request.isolation = ISOLATION_LEVELS[isolation];
      return;
    case TM_COMMIT_XACT:
      request.effect = !open || (depth !== null && depth > 1) ? 'read' : 'commit';
      request.provable = next === null && !view.idle;
      return;
    case TM_ROLLBACK_XACT:
      request.effect = !open || (name !== '' && savepoints.has(name)) ? 'read' : 'rollback';
      return;
    case TM_SAVE_XACT:
      request.saves = name;
      return;
    case TM_GET_DTC_ADDRESS:
      return;
    case TM_PROPAGATE_XACT:
    case TM_PROMOTE_XACT:
      request.unknown.push('distributed transaction');
      unclear(request, open);
  }
}

function rpc(request: TdsRequest, bytes: Uint8Array, start: number, end: number, view: View): void {
  const { calls } = readRpc(bytes, start + FRAME_HEADER, end, view.dialect);
  request.nested = true;
  const [call] = calls;
  if (calls.length > 1) {
    request.label = `${calls.length} calls`;
    // Handles among them would have to be told apart in one answer.
    if (calls.every((one) => wellKnown(one) === SP_EXECUTESQL)) {
      texts(request, bytes, calls, view);
      return;
    }
    unclear(request, view.open);
    for (const one of calls) if (wellKnown(one) !== 0) request.unknown.push('several calls with handles');
    return;
  }
  const id = wellKnown(call);
  const use = (cursor: boolean): HandleUse | null => {
    const [parameter] = call.parameters;
    const handle = parameter === undefined ? null : parameterInteger(bytes, parameter);
    if (handle === null || parameter.end - parameter.valueAt < 4) return null;
    return { at: parameter.end - 4 - start, handle, cursor };
  };
  switch (id) {
    case SP_EXECUTESQL: {
      const sql = statementText(bytes, call);
      if (sql === null) unclear(request, view.open);
      else text(request, readBatch(sql), view);
      return;
    }
    case SP_PREPARE:
    case SP_PREPEXEC: {
      const [, declaration, statement] = call.parameters;
      const sql = statement === undefined ? null : parameterText(bytes, statement);
      if (sql === null) {
        unclear(request, view.open);
        request.unknown.push('prepared statement');
        return;
      }
      request.prepares = { declaration: parameterText(bytes, declaration) ?? '', text: sql, cursor: false };
      if (id === SP_PREPEXEC) {
        text(request, readBatch(sql), view);
        if (request.effect === 'read') request.effect = 'session';
        // It may take the place of another one.
        request.uses = use(false);
        request.closes = request.uses;
      } else {
        request.label = 'sp_prepare';
        request.effect = 'session';
      }
      return;
    }
    case SP_EXECUTE: {
      request.uses = use(false);
      const prepared = request.uses === null ? undefined : view.prepared(request.uses.handle);
      if (prepared === undefined) unclear(request, view.open);
      else text(request, readBatch(prepared.text), view);
      return;
    }
    case SP_UNPREPARE:
      request.label = 'sp_unprepare';
      request.effect = 'session';
      request.uses = use(false);
      request.closes = request.uses;
      return;
    case SP_CURSOROPEN:
      request.label = 'sp_cursoropen';
      request.cursorAt = 0;
      opens(request, statementText(bytes, call), view);
      return;
    case SP_CURSORPREPARE:
    case SP_CURSORPREPEXEC: {
      // The latter has the cursor's handle before its declaration.
      const at = id === SP_CURSORPREPARE ? 1 : 2;
      const sql = statementText(bytes, call);
      const declaration = call.parameters[at];
      request.label = call.name;
      if (sql === null || declaration === undefined) {
        unclear(request, view.open);
        request.unknown.push('cursor');
        return;
      }
      request.prepares = { declaration: parameterText(bytes, declaration) ?? '', text: sql, cursor: true };
      request.effect = 'session';
      if (id === SP_CURSORPREPEXEC) {
        request.cursorAt = 1;
        opens(request, sql, view);
        request.uses = use(false);
        request.closes = request.uses;
      }
      return;
    }
    case SP_CURSOREXECUTE:
      request.label = call.name;
      request.uses = use(false);
      request.cursorAt = 1;
      opens(request, request.uses === null ? null : (view.prepared(request.uses.handle)?.text ?? null), view);
      return;
    case SP_CURSORUNPREPARE:
      request.label = call.name;
      request.effect = 'session';
      request.uses = use(false);
      request.closes = request.uses;
      return;
    case SP_CURSORFETCH:
    case SP_CURSOROPTION:
    case SP_CURSORCLOSE:
    case SP_CURSOR:
      request.label = call.name;
      request.uses = use(true);
      request.effect = 'session';
      if (id === SP_CURSORCLOSE) request.closes = request.uses;
      // Positioned changes.
      if (id === SP_CURSOR) {
        request.effect = 'write';
        request.writes = true;
      }
      return;
    case SP_PREPEXECRPC:
      request.label = call.name;
      request.unknown.push('prepared statement');
      unclear(request, view.open);
      return;
  }
  request.label = 'EXEC';
  if (onlyTells(call.name)) {
    request.decides = view.implicit && !view.open;
    request.effect = request.decides ? 'begin' : 'read';
    return;
  }
  const kept = keptBehind(call.name, () => (name, place) => {
    const parameter =
      call.parameters.find((one) => one.name.toUpperCase() === `@${name.toUpperCase()}`) ?? call.parameters[place];
    if (parameter === undefined || (parameter.name !== '' && parameter.name.toUpperCase() !== `@${name.toUpperCase()}`))
      return '';
    return parameterText(bytes, parameter);
  });
  if (kept !== null) request.unknown.push(kept);
  unclear(request, view.open);
}

/** A cursor is opened over this text, or one that is not known. */
function opens(request: TdsRequest, sql: string | null, view: View): void {
  const facts = sql === null ? null : readBatch(sql);
  if (facts === null || facts.opaque || facts.writes || facts.control.length > 0) unclear(request, view.open);
  else if (view.implicit && !view.open) {
    request.effect = 'begin';
    request.decides = true;
  } else request.effect = 'session';
}

/** Several calls of sp_executesql: all of them count. */
function texts(request: TdsRequest, bytes: Uint8Array, calls: readonly RpcCall[], view: View): void {
  request.guardable = calls.length > 0;
  for (const call of calls) {
    const sql = statementText(bytes, call);
    const facts = sql === null ? null : readBatch(sql);
    if (facts === null || facts.opaque || facts.control.length > 0 || view.implicit) {
      unclear(request, view.open);
      return;
    }
    request.unknown.push(...facts.unknown, ...facts.lasting);
    if (view.aborting || !guardable(facts, view)) request.guardable = false;
    if (facts.writes) {
      request.writes = true;
      request.effect = 'write';
    }
  }
}

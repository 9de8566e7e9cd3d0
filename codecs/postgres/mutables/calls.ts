import { type FuncCall, type Node, type RangeFunction, type Source, type Span, string, walk } from './parse.js';

/** What a call is to a repetition. */
export type CallKind =
  /** The transaction's time. */
  | 'time'
  /** Differs from call to call or server to server, and changes nothing: what was seen stands for it. */
  | 'made-up'
  | 'nextval'
  | 'currval'
  | 'lastval'
  | 'setval'
  /** Any other: only the server knows whether it may differ. */
  | 'function';

/** A call that may yield something else on another server. */
export interface Call {
  readonly kind: CallKind;
  readonly schema: string | undefined;
  readonly name: string;
  readonly span: Span;
  /** What a sequence function names: a literal, or a table and a column with {@link SERIAL} between them. */
  readonly sequence: string | undefined;
  /** Of the time: SQL with `T` for it. */
  readonly time: ((t: string) => string) | undefined;
  /** It stands in FROM by itself. */
  readonly from: RangeFunction | undefined;
}

/**
 * Functions of the server that say something else each time or on each server and change nothing that lasts, so that they need not be
 * called again when the client has seen their answer (manual: "Functions and Operators").
 */
const MADE_UP: ReadonlySet<string> = words(`
  random random_normal array_sample array_shuffle gen_random_uuid uuidv4 uuidv7 clock_timestamp statement_timestamp timeofday
  pg_backend_pid pg_my_temp_schema pg_postmaster_start_time pg_conf_load_time version
  inet_server_addr inet_server_port inet_client_addr inet_client_port
  txid_current txid_current_if_assigned txid_current_snapshot pg_current_xact_id pg_current_xact_id_if_assigned pg_current_snapshot
  pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn pg_last_wal_receive_lsn pg_last_wal_replay_lsn
  pg_last_xact_replay_timestamp pg_current_logfile pg_sequence_last_value pg_notification_queue_usage
  pg_database_size pg_relation_size pg_table_size pg_total_relation_size pg_indexes_size pg_tablespace_size`);

/** The same of extensions (uuid-ossp, pgcrypto), which may be in any schema. */
const MADE_UP_ANYWHERE: ReadonlySet<string> = words(
  'uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 gen_random_bytes gen_salt',
);

/** Frequent functions of the server that say the same for the same arguments, about which the server need not be asked. */
const FIXED: ReadonlySet<string> = words(`
  count sum avg min max every bool_and bool_or array_agg string_agg json_agg jsonb_agg json_object_agg jsonb_object_agg
  lower upper length char_length octet_length trim btrim ltrim rtrim substr substring replace concat concat_ws format md5 left right
  lpad rpad position strpos split_part repeat reverse initcap translate to_char to_date to_timestamp to_number
  abs ceil ceiling floor round trunc mod power sqrt sign greatest least coalesce nullif
  date_trunc date_part extract timezone make_date make_timestamp make_interval overlay
  json_build_object jsonb_build_object json_build_array jsonb_build_array row_to_json to_json to_jsonb jsonb_set
  array_length array_to_string string_to_array array_append array_position cardinality unnest generate_series
  row_number rank dense_rank lag lead first_value last_value ntile
  current_setting pg_typeof current_schema current_database format_type pg_get_serial_sequence to_regclass`);

const SEQUENCE_CALLS: ReadonlySet<string> = words('nextval currval lastval setval');

function words(text: string): ReadonlySet<string> {
  return new Set(text.trim().split(/\s+/));
}

const TIME_CALLS: ReadonlySet<string> = words('now transaction_timestamp');

/** SQLValueFunction: what each is in terms of the time. */
const TIME_VALUES: Readonly<Record<string, string>> = {
  SVFOP_CURRENT_DATE: 'date',
  SVFOP_CURRENT_TIME: 'timetz',
  SVFOP_CURRENT_TIME_N: 'timetz',
  SVFOP_CURRENT_TIMESTAMP: 'timestamptz',
  SVFOP_CURRENT_TIMESTAMP_N: 'timestamptz',
  SVFOP_LOCALTIME: 'time',
  SVFOP_LOCALTIME_N: 'time',
  SVFOP_LOCALTIMESTAMP: 'timestamp',
  SVFOP_LOCALTIMESTAMP_N: 'timestamp',
};

/** What a function's name says by itself. */
export function kindOfFunction(call: FuncCall): CallKind | null {
  const schema = call.funcname.length > 1 ? string(call.funcname.at(-2)) : undefined;
  const name = string(call.funcname.at(-1)) ?? '';
  const own = schema === undefined || schema === 'pg_catalog';
  if (call.funcformat === 'COERCE_SQL_SYNTAX') return null;
  if (MADE_UP_ANYWHERE.has(name)) return 'made-up';
  if (own) {
    if (TIME_CALLS.has(name)) return 'time';
    if (MADE_UP.has(name)) return 'made-up';
    if (SEQUENCE_CALLS.has(name)) return name as CallKind;
    if (FIXED.has(name)) return null;
  }
  return 'function';
}

/** The node is a call of the transaction's time and nothing else. */
export function isTime(node: Node): boolean {
  if (node.SQLValueFunction) return TIME_VALUES[node.SQLValueFunction.op] !== undefined;
  return node.FuncCall !== undefined && kindOfFunction(node.FuncCall) === 'time';
}

/** A literal, whatever it is cast to. */
export function literal(node: Node | undefined): string | undefined {
  let inner = node;
  while (inner?.TypeCast) inner = inner.TypeCast.arg;
  return inner?.A_Const?.sval === undefined ? undefined : (inner.A_Const.sval.sval ?? '');
}

/** Between the table and the column of a sequence that is named by them. */
export const SERIAL = '\u0001';

/** How an argument names a sequence: by a literal, or by pg_get_serial_sequence of two. */
function sequenceText(node: Node | undefined): string | undefined {
  let inner = node;
  while (inner?.TypeCast) inner = inner.TypeCast.arg;
  const call = inner?.FuncCall;
  if (call === undefined) return literal(inner);
  const [name, schema] = [
    string(call.funcname.at(-1)),
    call.funcname.length > 1 ? string(call.funcname.at(-2)) : 'pg_catalog',
  ];
  if (name !== 'pg_get_serial_sequence' || schema !== 'pg_catalog') return undefined;
  const [table, column] = [literal(call.args?.[0]), literal(call.args?.[1])];
  return table === undefined || column === undefined ? undefined : `${table}${SERIAL}${column}`;
}

/** All calls of a statement that may differ, in the order of the text. */
export function callsOf(source: Source): Call[] {
  const calls: Call[] = [];
  const inFrom = new Map<object, RangeFunction>();
  const seen = new Set<number>();
  walk(source.statement, (kind, body) => {
    if (kind === 'RangeFunction') {
      for (const each of (body as RangeFunction).functions) {
        const direct = each.List?.items?.[0];
        const call = direct?.FuncCall ?? direct?.SQLValueFunction;
        if (call !== undefined) inFrom.set(call, body as RangeFunction);
      }
      return;
    }
    const call = kind === 'FuncCall' || kind === 'SQLValueFunction' ? callOf(source, { [kind]: body }) : null;
    // UPDATE ... SET (a, b) = (...) has the same expression once for each column.
    if (call === null || seen.has(call.span.start)) return;
    seen.add(call.span.start);
    calls.push({ ...call, from: inFrom.get(body) });
  });
  return calls.sort((a, b) => a.span.start - b.span.start);
}

function callOf(source: Source, node: Node): Omit<Call, 'from'> | null {
  if (node.SQLValueFunction) {
    const { op, typmod = -1, location = 0 } = node.SQLValueFunction;
    const type = TIME_VALUES[op];
    if (type === undefined) return null;
    const token = source.tokenAt(location);
    const precise = op.endsWith('_N');
    const end = source.end(precise ? source.closing(token + 1) : token);
    const cast = precise ? `${type}(${typmod})` : type;
    return {
      kind: 'time',
      schema: undefined,
      name: source.word(token).toUpperCase(),
      span: { start: location, end },
      sequence: undefined,
      time: (t) => (cast === 'timestamptz' ? `(${t})` : `((${t})::${cast})`),
    };
  }
  const call = node.FuncCall;
  if (call === undefined) return null;
  const kind = kindOfFunction(call);
  if (kind === null) return null;
  const start = call.location ?? 0;
  const open = source.afterName(source.tokenAt(start));
  if (source.word(open) !== '(') return null;
  return {
    kind,
    schema: call.funcname.length > 1 ? string(call.funcname.at(-2)) : undefined,
    name: string(call.funcname.at(-1)) ?? '',
    span: { start, end: source.end(source.closing(open)) },
    sequence: SEQUENCE_CALLS.has(kind) ? sequenceText(call.args?.[0]) : undefined,
    time: kind === 'time' ? (t) => `(${t})` : undefined,
  };
}

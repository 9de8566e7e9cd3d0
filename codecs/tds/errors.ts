/** What the errors of a server mean to the gateway, and the gateway's own in TDS's terms. */

import type { ErrorMeaning, GatewayError, ServerError } from '../../core/contract/index.js';
import type { ServerMessage } from './facts.js';
import type { Dialect } from './version.js';
import { errorAnswer, type MessageParts } from './write.js';

/** From this class on the server ends the connection. */
const FATAL_CLASS = 20;

const MEANINGS: Readonly<Record<number, ErrorMeaning>> = {
  // The database is read-only: by somebody's will, or because its server is no primary any more.
  3906: 'read-only',
  // A database of an availability group that cannot be reached here (any more).
  976: 'read-only',
  978: 'read-only',
  979: 'read-only',
  982: 'read-only',
  983: 'read-only',
  // Deadlock victim, update conflict under snapshot isolation.
  1205: 'retry',
  3960: 'retry',
};

/** Refusals of a login by a server that starts up, goes down or is paused. */
const GOING = new Set([17142, 17187, 17188, 17189, 18401, 18451]);
/** Refusals that may pass: no room, a database that is about to be available. */
const PASSING = new Set([976, 978, 979, 982, 983, 10928, 10929, 17809, 40197, 40501, 40613, 49918, 49919, 49920]);
/** Babelfish has one number for all that it has no number for. */
const BABELFISH = 33_557_097;

function meaningOf({ number, class: level, message }: ServerMessage): ErrorMeaning {
  if (level >= FATAL_CLASS) return 'terminated';
  if (number === BABELFISH && message.includes('read-only transaction')) return 'read-only';
  return MEANINGS[number] ?? 'ordinary';
}

/** An ERROR of the server in a session. */
export function errorOf(message: ServerMessage): ServerError {
  const fatal = message.class >= FATAL_CLASS;
  return { meaning: meaningOf(message), code: String(message.number), message: message.message, fatal };
}

/** An ERROR with which a login was refused. */
export function refusalOf({ number, message }: ServerMessage): { error: ServerError; transient: boolean } {
  const going = GOING.has(number) || (number === BABELFISH && /recovery mode|starting up|shutting down/.test(message));
  const meaning = going ? 'server-lost' : 'ordinary';
  return { error: { meaning, code: String(number), message, fatal: true }, transient: going || PASSING.has(number) };
}

/** "Login failed." */
export const LOGIN_REFUSED = 18_456;

/** Number and class of each kind of the gateway's own errors; those from 50000 on are for applications to define. */
const NUMBERS: Readonly<Record<GatewayError['kind'], readonly [number: number, level: number]>> = {
  // What ordinary retry loops wait for: the transaction is gone and is to be run again.
  'retry-transaction': [1205, 13],
  'outcome-unknown': [50_087, 16],
  'state-lost': [50_055, 16],
  // "Database is not currently available. Please retry the connection later."
  unavailable: [40_613, 17],
  'too-large': [50_054, 16],
  protocol: [50_008, 16],
  refused: [LOGIN_REFUSED, 14],
  cancelled: [50_057, 16],
  'too-many': [17_809, 16],
  internal: [50_099, 16],
};

/** One of the gateway's own errors. Outlive's code stands behind the sentence, which has no other place for it. */
export function gatewayError({ kind, message, hint, code }: GatewayError, fatal = false): MessageParts {
  const [number, level] = NUMBERS[kind];
  const text = hint === undefined ? message : `${message}. ${hint}`;
  return { number, class: fatal ? FATAL_CLASS : level, message: `${text} [${code}]`, server: 'outlive' };
}

/** The gateway's own refusal of a login, as the tokens of an answer. */
export const loginRefusal = (message: string, dialect: Dialect): Uint8Array =>
  errorAnswer({ number: LOGIN_REFUSED, class: 14, message, server: 'outlive' }, dialect);

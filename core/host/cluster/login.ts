import {
  type Codec,
  CodedError,
  type Identity,
  type LoginContext,
  type LoginOutcome,
  type LoginResult,
} from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import type { ServerConfig } from '../config/index.js';
import type { Outside } from './outside.js';

/** A connection that the server let in. */
export interface LoggedIn {
  readonly ok: true;
  readonly wire: Wire;
  readonly rest: Uint8Array;
  readonly login: LoginResult;
  /** When the login was done. */
  readonly since: number;
}

export type Refused = Extract<LoginOutcome, { ok: false }>;

/** What a login needs to know. */
export interface LoginRequest {
  readonly codec: Codec;
  readonly server: ServerConfig;
  readonly identity: Identity;
  readonly startup: unknown;
  /** For connecting and logging in together. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** Connects and logs in. Rejects when the server cannot be reached or does not answer; a refusal is an answer. */
export async function logIn(outside: Outside, request: LoginRequest): Promise<LoggedIn | Refused> {
  const { codec, server, identity, startup, timeoutMs, signal } = request;
  const began = outside.now();
  const wire = await outside.dial(server, timeoutMs, signal);
  try {
    const tls: LoginContext['tls'] = server.tls === 'verify-full' ? 'require' : server.tls;
    const left = Math.max(1, timeoutMs - (outside.now() - began));
    const run = { codec, server, timeoutMs: left, signal };
    const { result, rest } = await outside.run(wire, codec.login({ identity, startup, tls }), run);
    if (result.ok) return { ok: true, wire, rest, login: result.login, since: outside.now() };
    wire.destroy();
    return result;
  } catch (error) {
    wire.destroy();
    throw error;
  }
}

/** Whether a refusal means that the server as a whole goes down, starts up or has crashed (and not that it has no room left). */
export function isGone(refused: Refused): boolean {
  return refused.error.meaning === 'server-lost';
}

/** A name of what went wrong, fit for logs. */
export function codeOf(error: unknown): string {
  if (error instanceof CodedError) return error.code;
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : error instanceof Error ? error.name : 'unknown';
}

/** What to say when a server does not know the gateway's own user, or has no room for it. */
export function monitorRefused(server: string, code: string): string {
  return `server ${server} does not let the monitor in (${code}); check its user, database and password, and max_connections`;
}

/** Takes a wire out of its owner's hands. */
export function detach(wire: Wire): void {
  wire.pause();
  wire.onData = () => {};
  wire.onClose = () => {};
}

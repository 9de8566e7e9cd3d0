/**
 * Credentials from the servers themselves, by a query that the monitor's user runs (PgBouncer's auth_query): with the default
 * one it must be allowed to read pg_shadow. Answers are kept for a short time, so that a changed password counts soon and a
 * storm of clients does not become a storm of queries.
 */

import { z } from 'zod';
import {
  CodedError,
  type CredentialsPlugin,
  type PluginContext,
  type PluginModule,
  type Secret,
} from '../../core/contract/index.js';

const CODE = 'OUTLIVE_CONFIG_CREDENTIALS';

const DEFAULT_QUERY = 'SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1';

const Options = z.strictObject({
  /** One statement with the user's name as $1; it answers with (user, secret) or with the secret alone. */
  query: z.string().min(1).default(DEFAULT_QUERY),
});

/** How long an answer counts, and how long "no such user" does. */
const KNOWN_MS = 10_000;
const UNKNOWN_MS = 1000;
/** Names are the clients' choice, and there is no end of them. */
const MAX_USERS = 10_000;

interface Entry {
  readonly secret: Promise<Secret | null>;
  until: number;
}

class Answers implements CredentialsPlugin {
  readonly #query: string;
  readonly #context: PluginContext;
  readonly #entries = new Map<string, Entry>();

  constructor(query: string, context: PluginContext) {
    this.#query = query;
    this.#context = context;
  }

  lookup(user: string): Promise<Secret | null> {
    const known = this.#entries.get(user);
    if (known !== undefined && performance.now() < known.until) return known.secret;
    this.#entries.delete(user);
    if (this.#entries.size >= MAX_USERS) this.#entries.delete(this.#entries.keys().next().value!);
    // Whoever asks while the query runs waits for the same answer.
    const entry: Entry = { secret: this.#ask(user), until: Number.POSITIVE_INFINITY };
    this.#entries.set(user, entry);
    entry.secret.then(
      (secret) => {
        entry.until = performance.now() + (secret === null ? UNKNOWN_MS : KNOWN_MS);
      },
      () => {
        if (this.#entries.get(user) === entry) this.#entries.delete(user);
      },
    );
    return entry.secret;
  }

  async #ask(user: string): Promise<Secret | null> {
    const { lookup } = this.#context;
    if (lookup !== undefined) return lookup(this.#query, user);
    const message =
      'credentials-query: the codec of this listener cannot ask a server for credentials; use another plugin';
    throw new CodedError(CODE, 'config', message);
  }
}

const plugin: PluginModule = {
  name: 'credentials-query',
  contract: '1.0.0',
  kind: 'credentials',
  async create(options, context): Promise<CredentialsPlugin> {
    const parsed = Options.safeParse(options ?? {});
    if (parsed.success) return new Answers(parsed.data.query, context);
    const [issue] = parsed.error.issues;
    const where = issue.path.length === 0 ? 'options' : `options.${issue.path.join('.')}`;
    throw new CodedError(CODE, 'config', `credentials-query: ${where}: ${issue.message}`);
  },
};

export default plugin;

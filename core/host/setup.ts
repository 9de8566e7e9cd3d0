import { type Codec, CodedError, type Exchange, type Markers } from '../contract/index.js';
import { logIn } from './cluster/login.js';
import { type Outside, outsideWorld } from './cluster/outside.js';
import {
  type ClusterConfig,
  type Config,
  formatDuration,
  type ListenerConfig,
  type Sensitive,
  type ServerConfig,
} from './config/index.js';
import { outcomeOf } from './outcome.js';
import type { Extensions } from './registry.js';

/** How long a login, and then a question, may take. */
const TIMEOUT_MS = 10_000;
/** How long statements may wait for locks of others. */
const INSTALL_MS = 60_000;

/** What `outlive setup` is told. */
export interface SetupOptions {
  readonly listener: string;
  /** Databases to set up; none: the monitor's. */
  readonly databases: readonly string[];
  /** Who does it; null: the monitor's user, with its password. */
  readonly as: { readonly user: string; readonly password: string | null } | null;
  /** Only says what would be run. */
  readonly dryRun: boolean;
  /** Also removes rows older than so many ms; null: none. */
  readonly removeOlderThan: number | null;
}

/** A listener whose commits are proved by rows. */
interface Subject {
  readonly listener: ListenerConfig;
  readonly codec: Codec;
  readonly cluster: ClusterConfig;
  readonly markers: Markers;
  readonly table: string;
  readonly monitor: NonNullable<ClusterConfig['monitor']>;
}

function subjectOf(config: Config, extensions: Extensions, listener: ListenerConfig): Subject | null {
  const codec = extensions.codecs.get(listener.name)!;
  const { by, table } = outcomeOf(listener, codec);
  const cluster = config.clusters.find(({ name }) => name === listener.cluster)!;
  if (by !== 'marker' || codec.markers === undefined || cluster.monitor === null) return null;
  return { listener, codec, cluster, markers: codec.markers, table, monitor: cluster.monitor };
}

/**
 * Sets up the table of rows that prove the commits of a listener, in each of the databases.
 *
 * @param out gets what was done, line by line
 * @returns false when something is still missing afterwards; `out` says what
 * @throws CodedError when there is nothing to set up, no server takes writes, or a server refuses
 */
export async function runSetup(
  config: Config,
  extensions: Extensions,
  options: SetupOptions,
  out: (line: string) => void,
): Promise<boolean> {
  const listener = config.listeners.find(({ name }) => name === options.listener);
  if (listener === undefined) {
    const known = config.listeners.map(({ name }) => name).join(', ');
    throw new CodedError(
      'OUTLIVE_SETUP_NOTHING',
      'config',
      `no listener has the name ${options.listener}; known: ${known}`,
    );
  }
  const subject = subjectOf(config, extensions, listener);
  if (subject === null) {
    const { by } = outcomeOf(listener, extensions.codecs.get(listener.name)!);
    const message = `listener ${listener.name} has nothing to set up: its commits are proved by ${by}; set outcome: { by: marker } first`;
    throw new CodedError('OUTLIVE_SETUP_NOTHING', 'config', message);
  }
  const { markers, table, monitor } = subject;
  const { retain } = listener.outcome;
  const { removeOlderThan, dryRun } = options;
  if (removeOlderThan !== null && removeOlderThan < retain) {
    const message = `rows younger than outcome.retain (${formatDuration(retain)}) may be looked for by a session whose commit is in doubt; name an age of that or more`;
    throw new CodedError('OUTLIVE_SETUP_AGE', 'client', message);
  }
  const databases = options.databases.length > 0 ? options.databases : [monitor.database];
  const user = options.as?.user ?? monitor.user;
  const password = options.as === null ? revealed(monitor.password) : options.as.password;
  const statements = markers.setup(table, monitor.user);
  let complete = true;
  for (const database of databases) {
    out(`database ${database}, as ${user}${dryRun ? ' (dry run: nothing is done)' : ''}:`);
    for (const statement of statements) out(`  ${statement.replaceAll('\n', '\n  ')};`);
    if (dryRun) continue;
    for (const server of await writable(subject, database, user, password)) {
      const ask = <R>(exchange: Exchange<R>) =>
        askAs(subject.codec, server, { user, database, password }, exchange, INSTALL_MS);
      await ask(markers.install(statements));
      out(`  done on server ${server.name}`);
      if (removeOlderThan !== null) {
        const count = await ask(markers.remove(table, removeOlderThan));
        out(`  ${count} rows older than ${formatDuration(removeOlderThan)} removed on server ${server.name}`);
      }
    }
    const missing = await inspectMarks(subject, database);
    for (const what of missing) out(`  missing: ${what}`);
    if (missing.length > 0) complete = false;
  }
  for (const right of markers.rights(table, monitor.user)) out(right);
  return complete;
}

/** What is missing for the rows of a listener on this database, in words; null where commits are proved otherwise. */
export async function inspectOutcome(
  config: Config,
  extensions: Extensions,
  listener: ListenerConfig,
  database: string | null,
): Promise<{ readonly database: string; readonly missing: readonly string[] } | null> {
  const subject = subjectOf(config, extensions, listener);
  if (subject === null) return null;
  const name = database ?? subject.monitor.database;
  return { database: name, missing: await inspectMarks(subject, name) };
}

/** Asks as the monitor, who has to find the rows and to remove them. */
async function inspectMarks(subject: Subject, database: string): Promise<string[]> {
  const { codec, markers, table, monitor } = subject;
  const { user } = monitor;
  const password = revealed(monitor.password);
  const missing: string[] = [];
  for (const server of await writable(subject, database, user, password)) {
    missing.push(...(await askAs(codec, server, { user, database, password }, markers.inspect(table), TIMEOUT_MS)));
  }
  return missing;
}

const revealed = (password: Sensitive | null): string | null => password?.reveal() ?? null;

/** The servers of the cluster that take writes now: one, or several where they do so beside each other. */
async function writable({ codec, cluster }: Subject, database: string, user: string, password: string | null) {
  const found: ServerConfig[] = [];
  const reasons: string[] = [];
  for (const server of cluster.servers) {
    try {
      const facts = await askAs(codec, server, { user, database, password }, codec.probe!(), TIMEOUT_MS);
      if (facts.writable) found.push(server);
      else reasons.push(`${server.name} is a ${facts.role}`);
    } catch (error) {
      if (!(error instanceof CodedError)) throw error;
      reasons.push(`${server.name}: ${error.message}`);
    }
  }
  if (found.length > 0) return cluster.writers === 'several' ? found : found.slice(0, 1);
  const message = `no server of cluster ${cluster.name} takes writes for ${user} in database ${database}: ${reasons.join('; ')}`;
  throw new CodedError('OUTLIVE_NO_WRITABLE_SERVER', 'server', message);
}

interface Who {
  readonly user: string;
  readonly database: string;
  readonly password: string | null;
}

const outside: Outside = outsideWorld(() => performance.now());

/** Runs an exchange over a connection of its own. */
async function askAs<R>(
  codec: Codec,
  server: ServerConfig,
  who: Who,
  exchange: Exchange<R>,
  timeoutMs: number,
): Promise<R> {
  const { user, database, password } = who;
  const { signal } = new AbortController();
  const identity = { user, database, secret: password === null ? null : { password } };
  const login = await logIn(outside, { codec, server, identity, startup: null, timeoutMs: TIMEOUT_MS, signal });
  if (!login.ok) {
    const message = `it does not let ${user} in to ${database} (${login.error.code})`;
    throw new CodedError('OUTLIVE_SETUP_REFUSED', 'server', message);
  }
  try {
    return (await outside.run(login.wire, exchange, { codec, server, rest: login.rest, timeoutMs, signal })).result;
  } finally {
    login.wire.end();
  }
}

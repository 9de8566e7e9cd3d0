import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { dirname, relative, resolve } from 'node:path';
import { type Document, isAlias, isMap, isNode, isScalar, LineCounter, parseDocument } from 'yaml';
import type { z } from 'zod';
import { ADDRESS_BALANCE, SESSION_BALANCE } from '../../cluster/balance.js';
import { ConfigError, closest, type Path, type Problem, writePath } from './problems.js';
import { type ConfigInput, type ConfigShape, configSchema, SECRET_ISSUE } from './schema.js';
import type { ActionUse, Config, PairConfig, PromotionConfig } from './types.js';
import { formatDuration, parseDuration } from './units.js';

/** Environment that `{ env: NAME }` secrets are read from. */
export type Environment = Readonly<Record<string, string | undefined>>;

interface Finding {
  readonly path: Path;
  readonly message: string;
  /** True when the place is the key itself, not its value. */
  readonly atKey?: boolean;
  readonly secret?: boolean;
}

/** Reads and checks the configuration file. Throws a {@link ConfigError} that lists everything that is wrong with it. */
export async function loadConfig(path: string, env: Environment = process.env): Promise<Config> {
  const file = resolve(path);
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    const message = `cannot be read (${reason}); name a readable file with --config`;
    throw new ConfigError('OUTLIVE_CONFIG_UNREADABLE', path, [{ path: '', line: null, column: null, message }], {
      cause: error,
    });
  }
  return parseConfig(text, dirname(file), env, file);
}

/**
 * Reads a configuration from YAML text.
 *
 * @param baseDir directory that relative paths start from
 * @param env where `{ env: NAME }` secrets are read from
 * @param file where the text came from, for messages
 */
export function parseConfig(
  text: string,
  baseDir: string,
  env: Environment = process.env,
  file: string | null = null,
): Config {
  const source = file === null ? 'configuration' : shorten(file);
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const faults = [...document.errors, ...document.warnings];
  if (faults.length > 0) {
    const problems = faults.map((fault): Problem => {
      const { line, col } = lines.linePos(fault.pos[0]);
      return { path: '', line, column: col, message: `not valid YAML: ${fault.message}` };
    });
    throw new ConfigError('OUTLIVE_CONFIG_SYNTAX', source, problems);
  }
  let input: unknown;
  try {
    input = document.toJS();
  } catch (error) {
    const message = `not valid YAML: ${(error as Error).message}`;
    throw new ConfigError('OUTLIVE_CONFIG_SYNTAX', source, [{ path: '', line: 1, column: 1, message }], {
      cause: error,
    });
  }
  return build(input ?? {}, { file, baseDir, env, source, locate: (finding) => locate(document, lines, finding) });
}

/** Checks a configuration that a program made, of the same shape as the YAML file; secrets may also be `Sensitive`. */
export function normalizeConfig(
  input: ConfigInput,
  baseDir: string = process.cwd(),
  env: Environment = process.env,
): Config {
  return build(input, { file: null, baseDir, env, source: 'configuration', locate: () => null });
}

interface Source {
  readonly file: string | null;
  readonly baseDir: string;
  readonly env: Environment;
  readonly source: string;
  readonly locate: (finding: Finding) => { line: number; column: number } | null;
}

function build(input: unknown, source: Source): Config {
  const baseDir = resolve(source.baseDir);
  const schema = configSchema({ baseDir, env: source.env });
  const result = schema.safeParse(input, { reportInput: true });
  const findings: Finding[] = [];
  if (!result.success) for (const issue of result.error.issues) findings.push(...explain(schema, issue));
  findings.push(...crossCheck(input));
  if (result.success) findings.push(...matchKeys(result.data));
  if (!result.success || findings.length > 0) throw failure(findings, source);
  return finish(result.data, source.file, baseDir);
}

function failure(findings: readonly Finding[], source: Source): ConfigError {
  const problems = findings.map((finding): Problem => {
    const place = source.locate(finding);
    return {
      path: writePath(finding.path),
      line: place?.line ?? null,
      column: place?.column ?? null,
      message: finding.message,
    };
  });
  problems.sort((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0));
  const code = findings.every((finding) => finding.secret) ? 'OUTLIVE_CONFIG_SECRET' : 'OUTLIVE_CONFIG_INVALID';
  return new ConfigError(code, source.source, problems);
}

/** Where a finding stands in the text: at its own node, else at the nearest enclosing one. */
function locate(document: Document, lines: LineCounter, finding: Finding): { line: number; column: number } {
  const path = [...finding.path];
  let offset: number | undefined;
  if (finding.atKey) {
    const key = path.pop();
    const map = follow(document, path);
    if (isMap(map)) {
      const pair = map.items.find((item) => isScalar(item.key) && String(item.key.value) === String(key));
      if (isNode(pair?.key)) offset = pair.key.range?.[0];
    }
  }
  while (offset === undefined) {
    offset = path.length === 0 ? (document.contents?.range?.[0] ?? 0) : follow(document, path)?.range?.[0];
    path.pop();
  }
  const { line, col } = lines.linePos(offset);
  return { line, column: col };
}

function follow(document: Document, path: Path) {
  const node = document.getIn(path, true);
  const target = isAlias(node) ? node.resolve(document) : node;
  return isNode(target) ? target : undefined;
}

// ------------------------------------------------------------------------------------------------ problems of the shape

/** Puts an issue of the schema into words that say what to do. */
function explain(schema: z.ZodType, issue: z.core.$ZodIssue): Finding[] {
  const path = issue.path as Path;
  if (issue.code === 'unrecognized_keys') {
    const known = Object.keys(shapeOf(at(schema, path)) ?? {});
    return issue.keys.map((key) => {
      const meant = closest(key, known);
      const fix = meant === null ? `known here: ${known.join(', ')}` : `did you mean ${JSON.stringify(meant)}?`;
      return { path: [...path, key], atKey: true, message: `unknown key; ${fix}` };
    });
  }
  if (issue.input === undefined && (issue.code === 'invalid_type' || issue.code === 'invalid_value')) {
    const about = at(schema, path)?.description;
    return [{ path, message: about ? `is missing. ${about}` : 'is missing' }];
  }
  if (issue.code === 'invalid_value') {
    const values = issue.values.map(String);
    const meant = typeof issue.input === 'string' ? closest(issue.input, values) : null;
    const hint = meant === null ? '' : `; did you mean ${JSON.stringify(meant)}?`;
    return [{ path, message: `must be one of ${values.join(', ')}${hint}` }];
  }
  if (issue.code === 'invalid_type' && !issue.message.startsWith('must')) {
    return [{ path, message: `must be ${TYPE_NAMES[issue.expected] ?? issue.expected}, not ${typeName(issue.input)}` }];
  }
  const secret = issue.code === 'custom' && issue.params?.kind === SECRET_ISSUE;
  return [{ path, message: issue.message, secret }];
}

const TYPE_NAMES: Record<string, string> = {
  string: 'a text',
  number: 'a number',
  boolean: 'true or false',
  array: 'a list',
  object: 'a mapping of keys',
  record: 'a mapping of keys',
};

function typeName(value: unknown): string {
  if (value === null) return 'empty';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'boolean') return String(value);
  return TYPE_NAMES[typeof value] ?? typeof value;
}

/** The part of the schema that a path leads to, its wrapping (optional, default, transform) still on. */
function at(schema: z.ZodType | undefined, path: Path): z.ZodType | undefined {
  let part = schema;
  for (const key of path) {
    const inner = unwrap(part);
    part =
      typeof key === 'number' ? (inner?.def as { element?: z.ZodType } | undefined)?.element : shapeOf(inner)?.[key];
  }
  return part;
}

function unwrap(schema: z.ZodType | undefined): z.ZodType | undefined {
  const def = schema?.def as { innerType?: z.ZodType; in?: z.ZodType } | undefined;
  const inner = def?.innerType ?? def?.in;
  return inner === undefined ? schema : unwrap(inner);
}

function shapeOf(schema: z.ZodType | undefined): Record<string, z.ZodType> | undefined {
  return (unwrap(schema) as { shape?: Record<string, z.ZodType> } | undefined)?.shape;
}

// ----------------------------------------------------------------------------------------- problems between several keys

/**
 * What only shows when several keys are seen together. It works on the raw input and skips what has the wrong shape, so that these
 * problems are reported along with those of the shape.
 */
function crossCheck(input: unknown): Finding[] {
  const findings: Finding[] = [];
  const root = mapping(input);
  const clusters = list(root.clusters);
  const clusterNames = clusters.map((cluster) => mapping(cluster).name).filter((name) => typeof name === 'string');
  findings.push(...repeated(list(root.listeners), 'name', ['listeners'], 'another listener has this name'));
  findings.push(...repeated(list(root.listeners), 'listen', ['listeners'], 'another listener has this address'));
  findings.push(...repeated(clusters, 'name', ['clusters'], 'another cluster has this name'));

  list(root.listeners).forEach((value, index) => {
    const listener = mapping(value);
    const path = ['listeners', index];
    if (typeof listener.cluster === 'string' && !clusterNames.includes(listener.cluster)) {
      const meant = closest(listener.cluster, clusterNames);
      const fix =
        meant === null ? `known: ${clusterNames.join(', ') || 'none'}` : `did you mean ${JSON.stringify(meant)}?`;
      findings.push({
        path: [...path, 'cluster'],
        message: `no cluster has the name ${JSON.stringify(listener.cluster)}; ${fix}`,
      });
    }
    if (typeof listener.auth === 'string' && listener.auth !== 'trust' && listener.credentials === undefined) {
      const message = `is missing: auth ${listener.auth} needs to know the users; add credentials: { plugin: credentials-file, path: users.txt }`;
      findings.push({ path: [...path, 'credentials'], message });
    }
    findings.push(...crossCheckTarget(listener, path, clusters), ...crossCheckOutcome(listener, path, clusters));
    const tls = mapping(listener.tls);
    for (const key of ['cert', 'key']) {
      const other = key === 'cert' ? 'key' : 'cert';
      if (tls[key] !== undefined) continue;
      if (tls.mode === 'allow' || tls.mode === 'require') {
        findings.push({ path: [...path, 'tls', key], message: `is missing: tls mode ${tls.mode} needs cert and key` });
      } else if (tls[other] !== undefined) {
        findings.push({ path: [...path, 'tls', key], message: `is missing: ${other} is of no use without it` });
      }
    }
  });

  if (root.pair !== undefined) findings.push(...crossCheckPair(root));

  clusters.forEach((value, index) => {
    const cluster = mapping(value);
    const path = ['clusters', index];
    findings.push(
      ...repeated(list(cluster.servers), 'name', [...path, 'servers'], 'another server of the cluster has this name'),
    );
    const places = list(cluster.servers).map((server) => ({
      place: `${mapping(server).host}:${mapping(server).port}`,
    }));
    findings.push(
      ...repeated(places, 'place', [...path, 'servers'], 'another server of the cluster has this host and port', false),
    );
    list(cluster.servers).forEach((server, position) => {
      if (mapping(server).ca !== undefined && mapping(server).tls !== 'verify-full') {
        findings.push({
          path: [...path, 'servers', position, 'ca'],
          message: 'is only used with tls: verify-full; set it or leave ca out',
        });
      }
    });
    if (cluster.monitor !== undefined) return;
    for (const key of ['promotion', 'fence']) {
      if (cluster[key] !== undefined) {
        findings.push({
          path: [...path, key],
          message: 'needs a monitor, which tells when the primary is lost; add monitor: { user: ... }',
        });
      }
    }
    if (Number(mapping(cluster.spares).perIdentity) > 0) {
      findings.push({
        path: [...path, 'spares'],
        message: 'need a monitor, which tells the standby; add monitor: { user: ... }',
      });
    }
  });
  return findings;
}

/** What a listener's target needs of its cluster, and what is of no use without it. */
function crossCheckTarget(listener: Record<string, unknown>, path: Path, clusters: readonly unknown[]): Finding[] {
  const findings: Finding[] = [];
  const wrong = (key: Path, message: string) => findings.push({ path: [...path, ...key], message });
  const { target = 'primary' } = listener;
  const cluster = clusters.map(mapping).find(({ name }) => name === listener.cluster);
  if (target !== 'primary' && cluster !== undefined && cluster.monitor === undefined) {
    wrong(['target'], 'needs a monitor of the cluster, which tells what each server is; add monitor: { user: ... }');
  }
  if (target === 'any' && cluster !== undefined && cluster.writers !== 'several') {
    wrong(
      ['target'],
      'any needs a cluster in which several servers take writes; add writers: several to it, or use primary',
    );
  }
  if (target !== 'standby' && listener.standby !== undefined) wrong(['standby'], 'is only used with target: standby');
  const { on, start = SESSION_BALANCE.start, stop = SESSION_BALANCE.stop } = mapping(listener.balance);
  if (target === 'primary' && on === true) {
    wrong(['balance', 'on'], 'is of no use with target: primary, where all sessions are on one server');
  }
  if (Number(stop) >= Number(start)) {
    wrong(['balance', 'stop'], `must be less than start (${start}), or sessions would go to and fro`);
  }
  return findings;
}

/** What rows that prove commits need of the cluster, and what is of no use without them. */
function crossCheckOutcome(listener: Record<string, unknown>, path: Path, clusters: readonly unknown[]): Finding[] {
  const findings: Finding[] = [];
  const { by, ...others } = mapping(listener.outcome);
  const wrong = (key: string, message: string) => findings.push({ path: [...path, 'outcome', key], message });
  const cluster = clusters.map(mapping).find(({ name }) => name === listener.cluster);
  if (by === 'marker' && cluster !== undefined && cluster.monitor === undefined) {
    wrong('by', 'marker needs a monitor of the cluster, which looks for the rows; add monitor: { user: ... }');
  }
  for (const key of ['table', 'retain']) {
    if (others[key] !== undefined && by !== 'marker') wrong(key, 'is only used with by: marker');
  }
  const retain = parseDuration(String(others.retain ?? '1h')) ?? 0;
  const wait = parseDuration(String(mapping(listener.failover).wait ?? '30s')) ?? 0;
  if (by === 'marker' && retain < 4 * wait) {
    wrong(
      'retain',
      `must be at least four times failover.wait (${formatDuration(wait)}), or rows are gone while sessions look for them`,
    );
  }
  return findings;
}

function crossCheckPair(root: Record<string, unknown>): Finding[] {
  const findings: Finding[] = [];
  const pair = mapping(root.pair);
  const wrong = (path: Path, message: string) => findings.push({ path: ['pair', ...path], message });
  if ((pair.peer === undefined) === (pair.peers === undefined)) {
    wrong([], 'needs either peer, for one other gateway, or peers, for several');
  }
  const places: Path[] = pair.peer === undefined ? list(pair.peers).map((_, index) => ['peers', index]) : [['peer']];
  const others = (pair.peer === undefined ? list(pair.peers) : [pair.peer]).map((other) => mapping(other));
  others.forEach(({ name }, index) => {
    if (typeof pair.name !== 'string' || pair.name !== name) return;
    wrong([...places[index], 'name'], 'is the name of this gateway itself; each needs one of its own');
  });
  if (pair.peer === undefined) {
    findings.push(
      ...repeated(others, 'name', ['pair', 'peers'], 'another gateway has this name'),
      ...repeated(others, 'address', ['pair', 'peers'], 'another gateway has this address'),
    );
  }
  if (others.length > 1 && pair.lease === undefined) {
    const message =
      'are more than one, which needs lease: a store such as etcd, since no fence command can decide among three which of them goes on';
    wrong(['peers'], message);
  }
  if ((pair.secret === undefined) === (pair.tls === undefined)) {
    wrong([], 'needs either secret or tls, so that the gateways know each other');
  }
  const names = [pair.name, ...others.map(({ name }) => name)];
  list(pair.addresses).forEach((value, index) => {
    const { home } = mapping(value);
    if (typeof home === 'string' && !names.includes(home)) {
      wrong(['addresses', index, 'home'], `must be one of the gateways: ${names.join(', ')}`);
    }
  });
  findings.push(...repeated(list(pair.addresses), 'address', ['pair', 'addresses'], 'this address is there twice'));
  const { start = ADDRESS_BALANCE.start, stop = ADDRESS_BALANCE.stop } = mapping(pair.balance);
  if (Number(stop) >= Number(start)) {
    wrong(['balance', 'stop'], `must be less than start (${start}), or addresses would go to and fro`);
  }
  list(root.listeners).forEach((value, index) => {
    const { tls, durability } = mapping(value);
    if (mapping(tls).mode === 'require' && durability === 'pair') {
      const message =
        'cannot be pair with tls mode require: the keys of TLS connections live in this process, and another gateway cannot go on with them; end TLS elsewhere, or use local';
      findings.push({ path: ['listeners', index, 'durability'], message });
    }
  });
  return findings;
}

function repeated(items: readonly unknown[], key: string, path: Path, message: string, atMember = true): Finding[] {
  const seen = new Set<string>();
  const findings: Finding[] = [];
  items.forEach((item, index) => {
    const value = mapping(item)[key];
    // Port 0 is a new port for each.
    if (typeof value !== 'string' || value.endsWith(':0') || value.includes('undefined')) return;
    if (seen.has(value))
      findings.push({ path: atMember ? [...path, index, key] : [...path, index], message: `${message}; change one` });
    seen.add(value);
  });
  return findings;
}

/** Certificate and key of a listener must belong together; told here rather than by every client's failed handshake. */
function matchKeys(shape: ConfigShape): Finding[] {
  const findings: Finding[] = [];
  shape.listeners.forEach(({ tls }, index) => {
    if (tls.cert === undefined || tls.key === undefined) return;
    if (new X509Certificate(tls.cert.text).checkPrivateKey(createPrivateKey(tls.key.text.reveal()))) return;
    findings.push({ path: ['listeners', index, 'tls', 'key'], message: 'is not the key of the certificate in cert' });
  });
  return findings;
}

function mapping(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

// ----------------------------------------------------------------------------------------------------------- the result

function finish(shape: ConfigShape, file: string | null, baseDir: string): Config {
  return {
    file,
    baseDir,
    listeners: shape.listeners.map((listener, index) => ({
      ...listener,
      balance: { ...listener.balance, on: listener.balance.on ?? listener.target !== 'primary' },
      // Where all connections use TLS no other gateway can go on with any.
      durability:
        listener.durability ?? (shape.pair === undefined || listener.tls.mode === 'require' ? 'local' : 'pair'),
      outcome: { ...listener.outcome, by: listener.outcome.by ?? null, table: listener.outcome.table ?? null },
      credentials:
        listener.credentials === undefined ? null : pluginUse(listener.credentials, `listeners[${index}].credentials`),
      tls: { mode: listener.tls.mode, cert: listener.tls.cert ?? null, key: listener.tls.key ?? null },
    })),
    clusters: shape.clusters.map((cluster, index) => ({
      ...cluster,
      servers: cluster.servers.map((server) => ({ ...server, ca: server.ca ?? null })),
      monitor:
        cluster.monitor === undefined ? null : { ...cluster.monitor, password: cluster.monitor.password ?? null },
      promotion: cluster.promotion === undefined ? null : promotion(cluster.promotion, `clusters[${index}].promotion`),
      fence: cluster.fence === undefined ? null : actionUse(cluster.fence, `clusters[${index}].fence`),
    })),
    admin: shape.admin ?? null,
    pair: shape.pair === undefined ? null : pairOf(shape.pair),
    keeper: { socket: resolve(baseDir, shape.keeper.socket) },
    log: shape.log,
  };
}

function pairOf({ peer, peers, ...pair }: NonNullable<ConfigShape['pair']>): PairConfig {
  return {
    ...pair,
    // Exactly one of both is there.
    peers: peers ?? [peer!],
    secret: pair.secret ?? null,
    tls: pair.tls ?? null,
    lease: pair.lease === undefined ? null : pluginUse(pair.lease, 'pair.lease'),
    fence: pair.fence === undefined ? null : actionUse(pair.fence, 'pair.fence'),
    holdAcknowledgements: pair.holdAcknowledgements ?? null,
    addresses: pair.addresses.map(({ mover, ...address }, index) => ({
      ...address,
      mover: pluginUse(mover, `pair.addresses[${index}].mover`),
    })),
  };
}

function pluginUse({ plugin, ...options }: { plugin: string }, path: string) {
  return { plugin, options, path };
}

function actionUse(value: { plugin: string; timeout: number }, path: string): ActionUse {
  return { ...pluginUse(value, path), timeout: value.timeout };
}

function promotion(
  { after, ...use }: { plugin: string; timeout: number; after: number },
  path: string,
): PromotionConfig {
  return { ...actionUse(use, path), after };
}

function shorten(file: string): string {
  const near = relative(process.cwd(), file);
  return near.startsWith('..') || near === '' ? file : near;
}

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { z } from 'zod';
import { ADDRESS_BALANCE, SESSION_BALANCE } from '../../cluster/balance.js';
import { Sensitive } from './sensitive.js';
import type { Address, LoadedFile } from './types.js';
import { DURATION_PATTERN, formatDuration, parseDuration, parseSize, SIZE_PATTERN } from './units.js';

/** What reading a configuration depends on besides its text. */
export interface SchemaContext {
  /** Directory that relative paths start from. */
  readonly baseDir: string;
  /** Environment that secrets are read from. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** A secret as the configuration names it: never the secret itself. A program may pass it wrapped. */
export type SecretInput = { env: string } | { file: string } | Sensitive;

/** What a program passes to `normalizeConfig`: the shape of the YAML file. */
export type ConfigInput = z.input<ReturnType<typeof configSchema>>;

/** The validated shape, before missing parts become null. */
export type ConfigShape = z.output<ReturnType<typeof configSchema>>;

const ADDRESS_PATTERN = /^(\[[0-9A-Fa-f:.%\w]+\]|[^\s:[\]]+):\d{1,5}$/;

const name = () =>
  z
    .string()
    .regex(/^[A-Za-z0-9][\w.-]*$/, 'must start with a letter or digit and hold only letters, digits, ".", "_", "-"');

const text = () => z.string().min(1, 'must not be empty');

const whole = (minimum: number, maximum: number) =>
  z
    .number()
    .refine((value) => Number.isInteger(value) && value >= minimum && value <= maximum, {
      error: `must be a whole number from ${minimum} to ${maximum}`,
    })
    .meta({ type: 'integer', minimum, maximum });

const decimal = (minimum: number, maximum: number) =>
  z
    .number()
    .refine((value) => value >= minimum && value <= maximum, {
      error: `must be a number from ${minimum} to ${maximum}`,
    })
    .meta({ minimum, maximum });

function duration(minimum: number) {
  return z
    .string({
      error: (issue) =>
        issue.input === undefined ? undefined : 'must be a duration with its unit, such as "500ms", "30s", "2m"',
    })
    .meta({ pattern: DURATION_PATTERN.source })
    .transform((value, context) => {
      const ms = parseDuration(value);
      if (ms !== null && ms >= minimum) return ms;
      const message =
        ms === null
          ? `${JSON.stringify(value)} is not a duration; write one such as "500ms", "30s", "2m", "1h"`
          : `${JSON.stringify(value)} is too short; the least is "${formatDuration(minimum)}"`;
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    });
}

function size() {
  return z
    .string({
      error: (issue) =>
        issue.input === undefined ? undefined : 'must be a size with its unit, such as "64KiB", "16MiB", "1GB"',
    })
    .meta({ pattern: SIZE_PATTERN.source })
    .transform((value, context) => {
      const bytes = parseSize(value);
      if (bytes !== null && bytes >= 1024) return bytes;
      const message =
        bytes === null
          ? `${JSON.stringify(value)} is not a size; write one such as "64KiB", "16MiB", "1GB"`
          : `${JSON.stringify(value)} is too small; the least is "1KiB"`;
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    });
}

function address() {
  return z
    .string({
      error: (issue) => (issue.input === undefined ? undefined : 'must be "host:port", such as "127.0.0.1:6432"'),
    })
    .meta({ pattern: ADDRESS_PATTERN.source })
    .transform((value, context): Address => {
      const colon = value.lastIndexOf(':');
      const port = Number(value.slice(colon + 1));
      if (ADDRESS_PATTERN.test(value) && port <= 65535) {
        return { host: value.slice(0, colon).replace(/^\[|\]$/g, ''), port };
      }
      const message = /^[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*$/.test(value)
        ? `${JSON.stringify(value)}: put an IPv6 address in brackets, such as "[::1]:6432"`
        : `${JSON.stringify(value)} is not "host:port", such as "127.0.0.1:6432" or "[::1]:6432", with a port up to 65535`;
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    });
}

/** A file that must be readable now and pass `check`. */
function file(context: SchemaContext, what: string, check: (content: string) => unknown) {
  return text().transform((value, refinement): LoadedFile<string> => {
    const path = resolve(context.baseDir, value);
    let content: string;
    try {
      content = readFileSync(path, 'utf8');
    } catch (error) {
      refinement.addIssue({
        code: 'custom',
        message: `cannot read ${path} (${reasonOf(error)}); name a readable file`,
      });
      return z.NEVER;
    }
    try {
      check(content);
    } catch {
      refinement.addIssue({ code: 'custom', message: `${path} is not ${what}` });
      return z.NEVER;
    }
    return { file: path, text: content };
  });
}

/** Issues of secrets carry this in `params`, so that the error's code tells a missing secret from a wrong key. */
export const SECRET_ISSUE = 'secret';

function secret(context: SchemaContext) {
  const resolved = z
    .unknown()
    .meta({
      oneOf: [
        {
          type: 'object',
          properties: { env: { type: 'string', description: 'Name of the environment variable that holds it.' } },
          required: ['env'],
          additionalProperties: false,
        },
        {
          type: 'object',
          properties: {
            file: { type: 'string', description: 'File that holds it; a trailing line break is dropped.' },
          },
          required: ['file'],
          additionalProperties: false,
        },
      ],
    })
    .transform((value, refinement): Sensitive => {
      const wrong = (message: string) => {
        refinement.addIssue({ code: 'custom', message, params: { kind: SECRET_ISSUE } });
        return z.NEVER;
      };
      if (value instanceof Sensitive) return value;
      const form = 'write { env: NAME } or { file: path }';
      if (typeof value !== 'object' || value === null)
        return wrong(`a secret does not stand in the configuration itself; ${form}`);
      const entries = Object.entries(value);
      const [key, where] = entries[0] ?? [];
      if (entries.length !== 1 || (key !== 'env' && key !== 'file') || typeof where !== 'string' || where === '') {
        return wrong(`is not a reference to a secret; ${form}`);
      }
      if (key === 'env') {
        const found = context.env[where];
        return found
          ? new Sensitive(found)
          : wrong(`the environment variable ${where} is ${found === '' ? 'empty' : 'not set'}; set it`);
      }
      const path = resolve(context.baseDir, where);
      try {
        const found = readFileSync(path, 'utf8').replace(/\r?\n$/, '');
        return found === '' ? wrong(`the file ${path} is empty; write the secret into it`) : new Sensitive(found);
      } catch (error) {
        return wrong(`cannot read ${path} (${reasonOf(error)}); name a readable file`);
      }
    });
  return resolved as unknown as z.ZodType<Sensitive, SecretInput>;
}

function reasonOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code;
  return code === 'ENOENT' ? 'it does not exist' : code === 'EACCES' ? 'permission denied' : (code ?? 'unreadable');
}

const PLUGIN = 'The plugin: a built-in name, an npm package, or a path (./my-plugin.js) relative to this file.';

/** The schema of the configuration. Transformations read files and secrets; its input side is the published JSON Schema. */
export function configSchema(context: SchemaContext) {
  const certificate = (content: string) => new X509Certificate(content);

  const limits = z
    .strictObject({
      clients: whole(1, 1_000_000).default(1000).describe('Clients at a time; more are refused politely.'),
      request: size().prefault('64MiB').describe('Largest request of a client; a larger one is refused.'),
      journal: size()
        .prefault('16MiB')
        .describe('Requests remembered of an open transaction; beyond it, the transaction is not replayed.'),
      answers: size()
        .prefault('256KiB')
        .describe('Answers of an open transaction kept as they came; beyond it, as a digest.'),
      queue: size()
        .prefault('1MiB')
        .describe('What a client may send during a failover before its socket is no longer read.'),
      backlog: size()
        .prefault('1MiB')
        .describe('Bytes that wait for a slow reader, each way, before the other side is no longer read.'),
      greetingTimeout: duration(100).prefault('10s').describe('How long a client may take to log in.'),
      greetings: whole(1, 1_000_000).default(200).describe('Connections at a time that have not logged in yet.'),
    })
    .prefault({})
    .describe('Limits of this listener. Every queue has one.');

  const failover = z
    .strictObject({
      wait: duration(100)
        .prefault('30s')
        .describe('How long a session waits for a server before its client gets an error.'),
      attempts: whole(1, 100).default(5).describe('Replays of one session in a row before its client gets an error.'),
      keepalive: duration(100)
        .prefault('5s')
        .describe('How often a client that waits during a failover is told that it is not forgotten.'),
      lostCommit: z
        .enum(['stop', 'continue'])
        .default('continue')
        .describe(
          'What to do when a commit that the client was told of is missing on the promoted server (asynchronous replication): stop ends the session, continue goes on and counts it.',
        ),
      unprotected: z
        .enum(['allow', 'refuse'])
        .default('allow')
        .describe('What to do with sessions that cannot be replayed: allow relays them as they are, refuse ends them.'),
    })
    .prefault({})
    .describe('What happens to the sessions of this listener when a server is lost.');

  const on = (what: string, preset = true) => z.boolean().default(preset).describe(what);

  const balance = z
    .strictObject({
      on: z
        .boolean()
        .optional()
        .describe('Sessions that are live move between servers; the default is true for target standby and any.'),
      conditions: z
        .strictObject({
          uneven: on('A server has many more sessions of this listener than another one: some of them move.'),
          fallback: on('A session is on the primary because there was no standby, and one is there: it moves.'),
          lagging: on('A standby is further behind than standby.maxLag: its sessions move.'),
          promoted: on('A standby has become the primary: its sessions move.'),
        })
        .prefault({})
        .describe('What makes live sessions move.'),
      start: decimal(1.01, 1000)
        .default(SESSION_BALANCE.start)
        .describe('Sessions begin to move when a server has so many times as many of them as another one.'),
      stop: decimal(1, 1000)
        .default(SESSION_BALANCE.stop)
        .describe('They move until it has less than so many times as many; less than start.'),
      slack: decimal(0, 1_000_000)
        .default(SESSION_BALANCE.slack)
        .describe('Added to the sessions of each before they are compared: 3 against 1 is no imbalance.'),
      sustain: duration(0)
        .prefault(formatDuration(SESSION_BALANCE.sustain))
        .describe('How long that must last before anything moves.'),
      halfLife: duration(1)
        .prefault(formatDuration(SESSION_BALANCE.halfLife))
        .describe('Half-life of the smoothed figures that are compared.'),
      movesPerMinute: decimal(0.01, 600_000)
        .default(SESSION_BALANCE.movesPerMinute)
        .describe('Sessions that move at most, for whatever reason.'),
      rest: duration(0)
        .prefault(formatDuration(SESSION_BALANCE.rest))
        .describe('A session that changed its server, for whatever reason, is not moved for so long to even out.'),
      noReturn: duration(0)
        .prefault(formatDuration(SESSION_BALANCE.noReturn))
        .describe('And it does not go back to where it came from for so long.'),
      pause: duration(0)
        .prefault('5s')
        .describe('Nothing moves for so long after a server came, went or changed what it is.'),
      patience: duration(10)
        .prefault('5s')
        .describe('How long a chosen session is waited for to be idle before it is left where it is.'),
      replay: on('Sessions amid a transaction move too: it is rolled back and repeated on the new server.', false),
    })
    .prefault({})
    .describe('When and how fast live sessions move between the servers, where target allows several.');

  const listener = z.strictObject({
    name: name().describe('Name of the listener, unique; appears in logs and metrics.'),
    codec: text().describe(
      'The protocol: a built-in name (postgres), an npm package, or a path (./my-codec.js) relative to this file.',
    ),
    options: z.record(z.string(), z.unknown()).default({}).describe("The codec's own options."),
    listen: address().describe('Address that clients connect to: host:port or [::1]:port; port 0 takes a free one.'),
    cluster: text().describe('Name of the cluster that stands behind it.'),
    target: z
      .enum(['primary', 'standby', 'any'])
      .default('primary')
      .describe(
        'Servers for its sessions. primary: the one that takes writes; standby: for reading only, a standby with the fewest sessions; any: of several servers that take writes (cluster: writers: several) the one with the fewest sessions.',
      ),
    standby: z
      .strictObject({
        maxLag: size()
          .prefault('16MiB')
          .describe(
            'A standby that is behind the primary by more bytes of log is not used, until it has caught up by half.',
          ),
        without: z
          .enum(['primary', 'refuse'])
          .default('primary')
          .describe('Where no standby can be used: primary: sessions go there, for reading only; refuse: they wait.'),
      })
      .prefault({})
      .describe('For target standby.'),
    balance,
    auth: text().describe(
      'How clients prove who they are: one of the ways that the codec knows, such as scram-sha-256.',
    ),
    credentials: z
      .looseObject({ plugin: text().describe(PLUGIN) })
      .optional()
      .describe("Where the users' secrets come from: a plugin with its own options. Not needed with auth: trust."),
    tls: z
      .strictObject({
        mode: z
          .enum(['off', 'allow', 'require'])
          .default('off')
          .describe('off: no TLS; allow: for clients that ask; require: clients without TLS are refused.'),
        cert: file(context, 'a PEM certificate', certificate)
          .optional()
          .describe('File with the certificate chain (PEM), relative to this file.'),
        key: file(context, 'a PEM private key without a passphrase', (content) => createPrivateKey(content))
          .transform((loaded): LoadedFile<Sensitive> => ({ file: loaded.file, text: new Sensitive(loaded.text) }))
          .optional()
          .describe('File with the private key (PEM, no passphrase), relative to this file.'),
      })
      .prefault({})
      .describe('TLS towards the clients.'),
    durability: z
      .enum(['local', 'pair'])
      .optional()
      .describe(
        'pair: a client gets nothing that the other gateway does not hold, so that it survives the loss of this host at any moment (the default with a pair); local: answers do not wait, and the loss of the host can cost connections.',
      ),
    mutables: z
      .enum(['keep', 'strict'])
      .default('keep')
      .describe(
        'Values that the server makes up (sequence values, defaults, clocks, random numbers) in a repeated transaction: keep: it carries those that the client has seen; strict: one that differs is a divergence, and the transaction fails.',
      ),
    outcome: z
      .strictObject({
        by: z
          .enum(['position', 'marker', 'none'])
          .optional()
          .describe(
            'position: the server is asked by the id of the transaction and its place in the log (the default where the codec can); marker: each transaction that writes leaves a row in a table of its own (outlive setup); none: the outcome is unknown.',
          ),
        autocommit: z
          .enum(['guard', 'unknown'])
          .default('guard')
          .describe(
            'A statement that writes outside a transaction: guard: the gateway puts one around it, so that its outcome can be known, for a round trip; unknown: it is sent as it is, and its outcome is unknown when its answer is lost.',
          ),
        table: text().optional().describe("The table of marker; the default is the codec's (outlive.commit_marker)."),
        retain: duration(600_000)
          .prefault('1h')
          .describe(
            'How long a row of marker is kept; the same for all listeners and gateways that share the table. A commit in doubt for half as long is unknown.',
          ),
      })
      .prefault({})
      .describe('How it is learnt whether a commit took effect whose answer was lost.'),
    limits,
    failover,
  });

  const server = z.strictObject({
    name: name().describe('Name of the server, unique in the cluster.'),
    host: text().describe('Host name or address.'),
    port: whole(1, 65535).describe('Port that it listens on.'),
    tls: z
      .enum(['off', 'prefer', 'require', 'verify-full'])
      .default('prefer')
      .describe(
        'TLS towards the server: off; prefer: if it offers it; require: always, unverified; verify-full: certificate and host name are verified.',
      ),
    ca: file(context, 'a PEM certificate', certificate)
      .optional()
      .describe("File with the authority's certificates (PEM) for verify-full; without it the well-known ones count."),
  });

  const cluster = z.strictObject({
    name: name().describe('Name of the cluster, unique.'),
    servers: z
      .array(server)
      .min(1, 'needs at least one server')
      .describe('The servers: one primary and its standbys, in any order.'),
    monitor: z
      .strictObject({
        user: text().describe("The gateway's own user on the servers."),
        database: text().default('postgres').describe('Database that it connects to.'),
        password: secret(context).optional().describe('Its password: { env: NAME } or { file: path }.'),
        interval: duration(50).prefault('500ms').describe('How often each server is asked.'),
        timeout: duration(50).prefault('2s').describe('How long an answer may take.'),
      })
      .optional()
      .describe('How the servers are watched. Without it no failover is noticed other than by broken connections.'),
    promotion: z
      .looseObject({
        after: duration(100).prefault('1s').describe('How long the primary must be unreachable.'),
        plugin: text().default('command').describe(PLUGIN),
        timeout: duration(100).prefault('30s').describe('How long the promotion may take.'),
      })
      .optional()
      .describe(
        "The gateway promotes a standby itself, with a plugin and its options. Without it someone else's promotion is followed.",
      ),
    fence: z
      .looseObject({
        plugin: text().default('command').describe(PLUGIN),
        timeout: duration(100).prefault('10s').describe('How long the fencing may take.'),
      })
      .optional()
      .describe('Makes a lost primary unable to act before another one is promoted: a plugin with its options.'),
    writers: z
      .enum(['one', 'several'])
      .default('one')
      .describe(
        'How many of the servers take writes at a time. several: for systems with more than one (multi-primary); none is refused then because another one takes writes.',
      ),
    spares: z
      .strictObject({
        perIdentity: whole(0, 10_000).default(0).describe('Warm sessions per user and database.'),
        total: whole(0, 100_000).default(200).describe('Warm sessions in all.'),
      })
      .prefault({})
      .describe('Sessions held logged in on the standby, so that a failover does not begin with a storm of logins.'),
    logins: z
      .strictObject({ concurrent: whole(1, 10_000).default(8).describe('Logins at a time on one server.') })
      .prefault({})
      .describe('Keeps a promoted server from being trampled.'),
    detection: z
      .strictObject({
        silence: duration(500)
          .prefault('10s')
          .describe(
            'A server connection that owes an answer is lost when the monitor cannot reach the server for this long, or when for this long nothing comes over it while the server says that it waits for its client (a link that swallows everything).',
          ),
      })
      .prefault({})
      .describe('How a silent loss of a server is noticed.'),
  });

  const peer = () =>
    z.strictObject({
      name: name().describe('Its name in its own configuration.'),
      address: address().describe('Its pair.listen, as seen from here.'),
    });
  const pair = z.strictObject({
    name: name().describe('Name of this gateway, unlike that of any other one.'),
    listen: address().describe('Address that the other gateways connect to: host:port.'),
    peer: peer().optional().describe('The other gateway. Or peers.'),
    peers: z
      .array(peer())
      .min(1, 'needs at least one gateway')
      .optional()
      .describe(
        'All other gateways, where there are more than two (needs lease). The sessions of each are followed by one other, chosen by rendezvous hashing over those that are there.',
      ),
    secret: secret(context)
      .optional()
      .describe('A secret that both gateways know, for a first start: { env: NAME } or { file: path }. Or tls.'),
    tls: z
      .strictObject({
        cert: file(context, 'a PEM certificate', certificate).describe(
          'File with the certificate of this gateway (PEM).',
        ),
        key: file(context, 'a PEM private key without a passphrase', (content) => createPrivateKey(content))
          .transform((loaded): LoadedFile<Sensitive> => ({ file: loaded.file, text: new Sensitive(loaded.text) }))
          .describe('File with its private key (PEM, no passphrase).'),
        ca: file(context, 'a PEM certificate', certificate).describe(
          "File with the authority's certificate (PEM); the other gateways' certificates must be made out to their names by it.",
        ),
      })
      .optional()
      .describe('Mutual TLS between the gateways.'),
    withoutPeer: z
      .enum(['continue', 'stop'])
      .default('continue')
      .describe(
        'What listeners with durability pair do while the other gateway (of several: every other one) is gone: continue, unprotected against the loss of this host; stop: their clients wait.',
      ),
    beat: duration(20).prefault('200ms').describe('How often the gateways tell each other how they are.'),
    silence: duration(100).prefault('1s').describe('A gateway that was not heard for so long is silent.'),
    restart: duration(100)
      .prefault('1500ms')
      .describe(
        'A gateway whose host refuses connections may be started again by its keeper: it is not taken over before so long after it was heard last.',
      ),
    backlog: size()
      .prefault('64MiB')
      .describe('What may wait for the other gateway; a slower one is given up until it comes back.'),
    lease: z
      .looseObject({ plugin: text().default('etcd').describe(PLUGIN) })
      .optional()
      .describe(
        'The store that decides who owns an address: a plugin with its options. Without lease and fence a silent gateway is never taken over.',
      ),
    fence: z
      .looseObject({
        plugin: text().default('command').describe(PLUGIN),
        timeout: duration(100).prefault('10s').describe('How long the fencing may take.'),
      })
      .optional()
      .describe(
        'Makes the other gateway unable to act before it is taken over, where there is no store: a plugin with its options.',
      ),
    addresses: z
      .array(
        z.strictObject({
          address: text()
            .refine((value) => z.union([z.ipv4(), z.ipv6()]).safeParse(value).success, {
              error: 'must be an IPv4 or IPv6 address',
            })
            .describe('An address that clients connect to.'),
          home: name().describe('The gateway that has it when nothing speaks against it.'),
          mover: z
            .looseObject({ plugin: text().default('address-ip').describe(PLUGIN) })
            .prefault({ plugin: 'address-none' })
            .describe(
              'Brings the address to this host: a plugin with its options (address-ip, address-command, address-none).',
            ),
        }),
      )
      .min(1, 'needs at least one address')
      .describe('The addresses that move between the gateways, with all their connections.'),
    holdAcknowledgements: z
      .strictObject({ interface: text().describe('Network interface that the clients are behind.') })
      .optional()
      .describe(
        "The kernel acknowledges a client's bytes only when the other gateway holds them (needs eBPF and privileges): no connection is lost with the host.",
      ),
    guard: z
      .boolean()
      .default(true)
      .describe(
        'A process that dies takes no connections with it: what its kernel would say to the clients is dropped (needs nft and privileges).',
      ),
    conditions: z
      .strictObject({
        hostFailed: on('The host of the other gateway is silent: take over.'),
        processFailed: on('Its process is gone: take over.'),
        dbmsFailed: on('A database server is lost: move its sessions.'),
        dbmsReadOnly: on('A database server takes no writes any more: move its sessions.'),
        unreachableBackends: on('A gateway reaches fewer clusters than the other one: move its addresses there.'),
        operator: on('outlive takeover and outlive drain are obeyed.'),
        balance: on('Addresses move to the gateway that has less to do.', false),
      })
      .prefault({})
      .describe('What makes addresses and sessions move.'),
    balance: z
      .strictObject({
        start: decimal(1.01, 1000)
          .default(ADDRESS_BALANCE.start)
          .describe(
            'Addresses begin to move when one gateway has so many times as much to do as the other one. CPU is compared first, by what is left of it, then sessions.',
          ),
        stop: decimal(1, 1000)
          .default(ADDRESS_BALANCE.stop)
          .describe('They move until it has less than so many times as much; less than start.'),
        sustain: duration(0)
          .prefault(formatDuration(ADDRESS_BALANCE.sustain))
          .describe('How long that must last before anything moves.'),
        halfLife: duration(1)
          .prefault(formatDuration(ADDRESS_BALANCE.halfLife))
          .describe('Half-life of the smoothed figures that are compared.'),
        stale: duration(1000)
          .prefault(formatDuration(ADDRESS_BALANCE.stale))
          .describe('Figures of the other gateway that are older count for nothing.'),
        movesPerMinute: decimal(0.01, 60)
          .default(ADDRESS_BALANCE.movesPerMinute)
          .describe('Addresses that move at most.'),
        rest: duration(0)
          .prefault(formatDuration(ADDRESS_BALANCE.rest))
          .describe('What was moved, for whatever reason, stays for so long.'),
        noReturn: duration(0)
          .prefault(formatDuration(ADDRESS_BALANCE.noReturn))
          .describe('It does not go back to where it came from for so long.'),
        receiverCpu: decimal(0.01, 1)
          .default(ADDRESS_BALANCE.receiverCpu)
          .describe('A gateway that uses more of its CPU core gets nothing.'),
        receiverDelay: duration(1)
          .prefault(formatDuration(ADDRESS_BALANCE.receiverDelay))
          .describe('A gateway whose event loop is later than this gets nothing.'),
        minGain: decimal(0, 1)
          .default(ADDRESS_BALANCE.minGain)
          .describe('A move must take away at least this part of the imbalance.'),
        slack: decimal(0, 1_000_000)
          .default(ADDRESS_BALANCE.slack)
          .describe('Added to the sessions of both before they are compared: 3 against 1 is no imbalance.'),
      })
      .prefault({})
      .describe('When and how fast addresses move between the gateways where conditions.balance is on.'),
  });

  return z.strictObject({
    pair: pair
      .optional()
      .describe('Other gateways, of which one follows the sessions of this one and goes on with them.'),
    keeper: z
      .strictObject({
        socket: text()
          .default('./keeper/keeper.sock')
          .describe('Path of its unix socket, relative to this file, in a directory that only its user can enter.'),
      })
      .prefault({})
      .describe('The keeper, where the gateway runs under one (outlive keeper).'),
    listeners: z.array(listener).min(1, 'needs at least one listener').describe('Where clients connect to.'),
    clusters: z.array(cluster).min(1, 'needs at least one cluster').describe('The databases behind the listeners.'),
    admin: z
      .strictObject({ listen: address().describe('Address of the admin interface: host:port.') })
      .optional()
      .describe('HTTP interface for operators: /metrics, /health, /status.'),
    log: z
      .strictObject({
        level: z
          .enum(['debug', 'info', 'warn', 'error', 'silent'])
          .default('info')
          .describe('The least important messages that are written.'),
        pretty: z.boolean().default(false).describe('Lines for people instead of JSON.'),
      })
      .prefault({})
      .describe('What is logged.'),
  });
}

/** The JSON Schema of the configuration file, for editors. */
export function configJsonSchema(): Record<string, unknown> {
  const schema = z.toJSONSchema(configSchema({ baseDir: '.', env: {} }), {
    io: 'input',
    target: 'draft-7',
    reused: 'inline',
  });
  return { ...schema, title: 'Outlive configuration' };
}

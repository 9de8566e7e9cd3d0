import { expect, it } from 'vitest';
import { launchGateway } from '../kit/gateway.js';
import {
  type Cell,
  DIALECTS,
  type Dialect,
  Failure,
  int,
  isDivergence,
  names,
  Player,
  type Result,
  type Script,
} from '../kit/mutables.js';
import { Raw, useStage } from '../kit/stage.js';

/**
 * M7: a replayed value that is corrupted on purpose is found every time. The proxy before the promoted server changes one value of one
 * repeated answer, each position in turn; or one value that the gateway writes into a statement.
 */
const stage = useStage(`
  create sequence s start 40000;
  create table m (
    id bigint generated always as identity (start 7000001) primary key, tag text, n int, at timestamptz default now(),
    u uuid default gen_random_uuid(), r float8 default random(), d text default 'fixed');
  create table child (id serial primary key, m_id bigint references m, tag text, at timestamp default now());
  alter sequence child_id_seq restart 9000001;
`);

/** The columns of each statement's answer; 0 is BEGIN. */
const COLUMNS: readonly (readonly string[])[] = [
  [],
  ['id', 'tag', 'n', 'at', 'u', 'r', 'd'],
  ['now', 'nextval', 'gen_random_uuid'],
  ['tag', 'id', 'at'],
  ['at', 'id', 'm_id', 'tag'],
  ['n', 'tag', 'id'],
];
const ROWS = [0, 1, 1, 2, 1, 3];

const SCRIPT: Script = {
  name: 'values',
  tables: ['m', 'child'],
  statements: (tag) => [
    { sql: 'insert into m (tag, n) values ($1, 1) returning *', params: [tag] },
    { sql: "select now(), nextval('s'), gen_random_uuid()" },
    { sql: 'insert into m (tag, n) values ($1, 2), ($1, 3) returning tag, id, at', params: [tag] },
    {
      sql: 'insert into child (m_id, tag) values ($1, $2) returning at, id, m_id, tag',
      params: (seen) => [seen[1].rows[0][0], tag],
    },
    { sql: 'select n, tag, id from m where tag = $1 order by n', params: [tag] },
  ],
};

type Change = (frame: Buffer) => Buffer;

/** Cuts a stream into whole frames and has each changed. */
function framewise(change: Change): Change {
  let rest: Buffer = Buffer.alloc(0);
  return (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    const out: Buffer[] = [];
    while (rest.length >= 5 && rest.length >= rest.readInt32BE(1) + 1) {
      const length = rest.readInt32BE(1) + 1;
      out.push(change(rest.subarray(0, length)));
      rest = rest.subarray(length);
    }
    return Buffer.concat(out);
  };
}

/** What is done to the connections of each client on the promoted server. */
const changes = new Map<string, { client?: Change; server?: Change }>();

/**
 * From now on, changes what passes between the gateway and the server that takes over.
 * @returns ends it
 */
function tamper(clients: ReadonlyMap<string, Raw>): () => void {
  let name = '';
  return stage.nextProxy.when(
    'client',
    (bytes) => {
      // A startup packet of protocol 3.
      if (bytes.length < 8 || bytes.length > 1000 || bytes.readUInt16BE(4) !== 3) return false;
      name = /application_name\0(raw\d+\.)\0/.exec(bytes.toString('latin1'))?.[1] ?? '';
      return clients.has(name) && changes.has(name);
    },
    () => {
      const change = changes.get(name)!;
      const [toServer, toClient] = [framewise(change.client ?? same), framewise(change.server ?? same)];
      stage.line(clients.get(name)!).rewrite = (side, chunk) => (side === 'client' ? toServer(chunk) : toClient(chunk));
    },
    { times: Number.POSITIVE_INFINITY },
  );
}

const same: Change = (frame) => frame;

/** Where the value of a column stands in a DataRow frame. */
function spanOf(frame: Buffer, column: number): [start: number, end: number] {
  let at = 7;
  for (let i = 0; ; i++) {
    const length = frame.readInt32BE(at);
    at += 4;
    if (i === column) return [at, at + Math.max(length, 0)];
    at += Math.max(length, 0);
  }
}

interface Held {
  readonly player: Player;
  readonly tag: string;
  readonly what: string;
  readonly statement: number;
  /** The message must name one of these; empty where there is no column to name. */
  readonly columns: readonly string[];
  readonly over: Promise<Failure | Error | null>;
  changed: number;
}

let tags = 50_000;

/** A client that has seen everything and waits before its COMMIT. */
async function hold(
  dialect: Dialect,
  what: string,
  statement: number,
  columns: readonly string[],
  change: (seen: readonly Result[], did: () => void) => { client?: Change; server?: Change },
  anew: Promise<void>,
): Promise<Held> {
  const player = new Player(await stage.raw(), dialect);
  if (dialect.how === 'prepared') await player.play(SCRIPT, String(tags++));
  const tag = String(tags++);
  const held: { -readonly [K in keyof Held]: Held[K] } = {
    player,
    tag,
    what: `${dialect.name}: ${what}`,
    statement,
    columns,
    over: Promise.resolve(null),
    changed: 0,
  };
  const last = player.groups(SCRIPT, tag).length - 1;
  await new Promise<void>((resolve, reject) => {
    held.over = player
      .play(SCRIPT, tag, async (group, seen) => {
        if (group !== last) return;
        changes.set(
          player.client.name,
          change(seen, () => held.changed++),
        );
        resolve();
        await anew;
      })
      .then(
        () => null,
        (error) => {
          reject(error);
          return error;
        },
      );
  });
  return held;
}

/** Kills, and checks that each of these clients is told of its divergence, by name, and goes on. */
async function allDetected(make: (anew: Promise<void>) => Promise<Held>[]): Promise<number> {
  let promoted: () => void = () => {};
  const anew = new Promise<void>((resolve) => {
    promoted = resolve;
  });
  const all = await Promise.all(make(anew));
  const untamper = tamper(new Map(all.map(({ player }) => [player.client.name, player.client])));
  await stage.kill();
  promoted();
  const wrong: string[] = [];
  for (const held of all) {
    const { player, tag, what, statement, columns } = held;
    const failure = await held.over;
    const say = (text: string) => wrong.push(`${what}: ${text}`);
    if (held.changed === 0) say(`nothing was changed (${failure === null ? 'committed' : failure.message})`);
    else if (failure === null) say('NOT DETECTED: committed');
    else if (!(failure instanceof Failure) || !isDivergence(failure)) say(`answered ${failure.message}`);
    else if (!failure.message.includes(`statement ${statement + 1} (`))
      say(`another statement is named: ${failure.message}`);
    else if (columns.length > 0 && !names(failure, columns)) say(`the column is not named: ${failure.message}`);
    changes.delete(player.client.name);
    if (player.client.closed) {
      say('the connection was closed');
      continue;
    }
    if (failure !== null) {
      await player.run('rollback');
      await player.play(SCRIPT, String(tags++)).catch((error: Error) => say(`retry: ${error.message}`));
      expect(await stage.rows(`m where tag = '${tag}'`), what).toBe(0);
    }
  }
  untamper();
  if (wrong.length > 0) throw new Error(`${wrong.length} of ${all.length}:\n  ${wrong.slice(0, 40).join('\n  ')}`);
  return all.length;
}

/** Changes the frame of one DataRow that the client saw. */
const ofRow =
  (statement: number, row: number, change: (frame: Buffer) => Buffer) =>
  (seen: readonly Result[], did: () => void): { server: Change } => {
    const wanted = seen[statement].bodies[row];
    return {
      server: (frame) => {
        if (frame[0] !== 0x44 || !frame.subarray(5).equals(wanted)) return frame;
        did();
        return change(Buffer.from(frame));
      },
    };
  };

const flip = (column: number) => (frame: Buffer) => {
  const [, end] = spanOf(frame, column);
  frame[end - 1] ^= 1;
  return frame;
};

const toNull = (column: number) => (frame: Buffer) => {
  const [start, end] = spanOf(frame, column);
  const shorter = Buffer.concat([frame.subarray(0, start), frame.subarray(end)]);
  shorter.writeInt32BE(-1, start - 4);
  shorter.writeInt32BE(shorter.length - 1, 1);
  return shorter;
};

it.each([DIALECTS.simple, DIALECTS.binary, DIALECTS.prepared])(
  'one byte of any value of a repeated answer: $name',
  async (dialect) => {
    const count = await allDetected((anew) =>
      COLUMNS.flatMap((columns, statement) =>
        columns.flatMap((column, c) =>
          Array.from({ length: ROWS[statement] }, (_, row) =>
            hold(
              dialect,
              `${column} of row ${row}, statement ${statement + 1}`,
              statement,
              [column],
              ofRow(statement, row, flip(c)),
              anew,
            ),
          ),
        ),
      ),
    );
    expect(count).toBe(7 + 3 + 6 + 4 + 9);
  },
);

it('a NULL in place of a value, a row too few or too many, another count', async () => {
  const nothing = () => Buffer.alloc(0);
  const twice = (frame: Buffer) => Buffer.concat([frame, frame]);
  await allDetected((anew) => [
    ...COLUMNS.flatMap((columns, statement) =>
      columns.map((column, c) =>
        hold(
          DIALECTS.extended,
          `NULL for ${column}, statement ${statement + 1}`,
          statement,
          [column],
          ofRow(statement, 0, toNull(c)),
          anew,
        ),
      ),
    ),
    ...[1, 3, 5].flatMap((statement) => [
      hold(
        DIALECTS.simple,
        `a row too few, statement ${statement + 1}`,
        statement,
        [],
        ofRow(statement, ROWS[statement] - 1, nothing),
        anew,
      ),
      hold(
        DIALECTS.simple,
        `a row too many, statement ${statement + 1}`,
        statement,
        [],
        ofRow(statement, 0, twice),
        anew,
      ),
    ]),
    hold(
      DIALECTS.simple,
      'another command tag',
      3,
      [],
      (_seen, did) => ({
        server: (frame) => {
          if (frame[0] !== 0x43 || !frame.includes('INSERT 0 2\0')) return frame;
          did();
          const other = Buffer.from(frame);
          other[other.length - 2] ^= 1;
          return other;
        },
      }),
      anew,
    ),
  ]);
});

/** How the gateway may write a value, and another value of the same length: as it came, or as text. */
function formsOf({ bytes, binary }: Cell): { form: Buffer; other: Buffer }[] {
  const forms: { form: Buffer; other: Buffer }[] = [];
  const add = (form: Buffer, first: number) => {
    const other = Buffer.from(form);
    other[0] = first;
    forms.push({ form, other });
  };
  let text = bytes!.toString('latin1');
  if (binary) {
    add(bytes!, bytes![0] ^ 1);
    const hex = bytes!.toString('hex');
    if (bytes!.length === 16) text = hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    else text = String(int({ bytes, binary }));
  }
  // Its first digit: no other row has that id, and a uuid stays one.
  add(Buffer.from(text), text[0] === '0' ? 0x31 : 0x30);
  return forms;
}

/** Changes a value wherever the gateway gives it to the server in a Query, a Parse or a Bind. */
const given =
  (statement: number, row: number, column: number) =>
  (seen: readonly Result[], did: () => void): { client: Change } => {
    const forms = formsOf(seen[statement].rows[row][column]);
    return {
      client: (frame) => {
        if (!'QPB'.includes(String.fromCharCode(frame[0]))) return frame;
        const changed = Buffer.from(frame);
        for (const { form, other } of forms) {
          for (let i = changed.indexOf(form, 5); i >= 0; i = changed.indexOf(form, i + form.length)) {
            did();
            other.copy(changed, i);
          }
        }
        return changed;
      },
    };
  };

it.each([DIALECTS.simple, DIALECTS.extended, DIALECTS.prepared, DIALECTS['prepared binary']])(
  'a value changed in the statement that the gateway sends: $name',
  async (dialect) => {
    const targets: [statement: number, row: number, column: number][] = [
      [1, 0, 0],
      [1, 0, 4],
      [3, 0, 1],
      [3, 1, 1],
      [4, 0, 1],
    ];
    await allDetected((anew) => [
      ...targets.map(([statement, row, column]) => {
        const name = COLUMNS[statement][column];
        return hold(
          dialect,
          `${name} of row ${row}, statement ${statement + 1}`,
          statement,
          [name],
          given(statement, row, column),
          anew,
        );
      }),
    ]);
  },
);

it('mutables: strict diverges where keep goes on', async (context) => {
  const start = (mutables: string) => launchGateway({ pair: stage.pair }, { listener: { mutables } as object });
  const strict = await start('strict').catch((error: Error) => error);
  if (strict instanceof Error) {
    expect(strict.message).toMatch(/mutables/);
    context.skip(`the configuration does not know mutables yet: ${strict.message}`);
    return;
  }
  const keep = await start('keep');
  try {
    const open = async (port: number) => {
      const client = await Raw.connect(port, 'policy', {});
      stage.adopt(client);
      return new Player(client, DIALECTS.extended);
    };
    const players = [await open(strict.port), await open(keep.port)];
    let promoted: () => void = () => {};
    const anew = new Promise<void>((resolve) => {
      promoted = resolve;
    });
    let waiting = 0;
    const outcomes = players.map((player) =>
      player
        .play(SCRIPT, String(tags++), async (group) => {
          if (group < 6) return;
          if (++waiting === 2) void stage.kill().then(promoted);
          await anew;
        })
        .then(
          () => null,
          (error) => error,
        ),
    );
    const [failed, kept] = await Promise.all(outcomes);
    expect(kept).toBe(null);
    expect(isDivergence(failed), failed?.message).toBe(true);
    await players[0].run('rollback');
    await players[0].play(SCRIPT, String(tags++));
  } finally {
    await strict.stop();
    await keep.stop();
  }
});

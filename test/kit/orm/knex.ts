import knexModule, { type Knex } from 'knex';
import type { App, AppContext, Draft, Row, Table, Worker } from './belief.js';

const AUTHORS: Table = { name: 'authors', key: 'id', select: 'SELECT * FROM knex.authors' };
const BOOKS: Table = { name: 'books', key: 'id', select: 'SELECT * FROM knex.books' };
const STOCK: Table = { name: 'stock', key: 'id', select: 'SELECT * FROM knex.stock' };
const EVENTS: Table = { name: 'events', key: 'id', select: 'SELECT * FROM knex.events' };

/** What the application throws to roll a transaction of its own back. */
class Abandoned extends Error {}

/** An application on Knex: increments, RETURNING, savepoints, batches, merges. */
export function knexApp({ port, connections, lost }: AppContext): App {
  const db = knexModule({
    client: 'pg',
    connection: { host: '127.0.0.1', port, user: 'postgres', database: 'postgres' },
    searchPath: ['knex', 'public'],
    pool: {
      min: 0,
      max: connections,
      afterCreate: (connection: NodeJS.EventEmitter, done: (error: Error | null, connection: unknown) => void) => {
        connection.on('error', lost);
        done(null, connection);
      },
    },
  });

  const newAuthor = async (trx: Knex, draft: Draft, worker: Worker): Promise<Row> => {
    const [author] = await trx('authors')
      .insert({ worker: worker.number, name: worker.name('author') })
      .returning('*');
    draft.put(AUTHORS, author);
    return author;
  };
  const bookValues = (worker: Worker, author: Row, count: number) =>
    Array.from({ length: count }, () => ({ author_id: author.id, title: worker.name('book') }));
  const newBooks = async (trx: Knex, draft: Draft, worker: Worker, author: Row, count: number) => {
    const made: Row[] = await trx('books')
      .insert(bookValues(worker, author, count))
      .returning(['id', 'author_id', 'title', 'created_at']);
    for (const book of made) draft.put(BOOKS, book);
  };

  const operations: App['operations'] = {
    graph: [
      4,
      async (draft, worker) => {
        await db.transaction(async (trx) => {
          const author = await newAuthor(trx, draft, worker);
          await draft.think();
          await newBooks(trx, draft, worker, author, 1 + worker.below(3));
          await draft.think();
        });
      },
    ],
    savepoint: [
      2,
      async (draft, worker) => {
        await db.transaction(async (trx) => {
          const author = await newAuthor(trx, draft, worker);
          const mark = draft.mark();
          await trx
            .transaction(async (inner) => {
              await newBooks(inner, draft, worker, author, 2);
              await draft.think();
              throw new Abandoned();
            })
            .catch((error) => {
              if (!(error instanceof Abandoned)) throw error;
              draft.undo(mark);
            });
          await draft.think();
          await trx.transaction((inner) => newBooks(inner, draft, worker, author, 1));
          await draft.think();
        });
      },
    ],
    /** Several INSERT statements in one transaction, and one by the transaction provider that stays open in between. */
    batch: [
      2,
      async (draft, worker) => {
        const provider = db.transactionProvider();
        const trx = await provider();
        try {
          const author = await newAuthor(await provider(), draft, worker);
          await draft.think();
          const made: Row[] = await db
            .batchInsert<Row>('books', bookValues(worker, author, 5), 2)
            .returning(['id', 'author_id', 'title', 'created_at'])
            .transacting(trx);
          for (const book of made) draft.put(BOOKS, book);
          await draft.think();
          await trx.commit();
        } catch (error) {
          if (!trx.isCompleted()) await trx.rollback();
          throw error;
        }
      },
    ],
    /** A batch in a transaction that it opens itself. */
    batchAlone: [
      1,
      async (draft, worker) => {
        const author = worker.recent(AUTHORS);
        if (author === undefined) return;
        const made: Row[] = await db
          .batchInsert<Row>('books', bookValues(worker, author, 4), 2)
          .returning(['id', 'author_id', 'title', 'created_at']);
        for (const book of made) draft.put(BOOKS, book);
      },
    ],
    upsert: [
      2,
      async (draft, worker) => {
        const run = async (trx: Knex) => {
          const row = { worker: worker.number, slot: worker.below(12), quantity: 1 + worker.below(9) };
          const [stored] = await trx('stock')
            .insert(row)
            .onConflict(['worker', 'slot'])
            .merge({ quantity: trx.raw('stock.quantity + excluded.quantity'), updated_at: trx.fn.now() })
            .returning('*');
          draft.put(STOCK, stored);
        };
        if (worker.below(3) === 0) return run(db);
        await db.transaction(async (trx) => {
          await run(trx);
          await draft.think();
          await run(trx);
          await draft.think();
        });
      },
    ],
    optimistic: [
      2,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction(async (trx) => {
          const author: Row = await trx('authors').where({ id: known.id }).first();
          worker.compare(AUTHORS, (row) => row.id === known.id, [author]);
          await draft.think();
          const changed: Row[] = await trx('authors')
            .where({ id: author.id, version: author.version })
            .update({ name: worker.name('renamed'), updated_at: trx.fn.now() })
            .increment('version', 1)
            .returning('*');
          if (changed.length !== 1) throw new Error('a stale version although only this worker writes the row');
          draft.put(AUTHORS, changed[0]);
          await draft.think();
        });
      },
    ],
    /** SELECT ... FOR UPDATE, in a transaction that reads one snapshot. */
    locked: [
      1,
      async (draft, worker) => {
        const known = worker.recent(STOCK);
        if (known === undefined) return;
        await db.transaction(
          async (trx) => {
            const row: Row = await trx('stock').where({ id: known.id }).forUpdate().first();
            worker.compare(STOCK, ({ id }) => id === known.id, [row]);
            await draft.think();
            const [changed] = await trx('stock')
              .where({ id: known.id })
              .update({ quantity: Number(row.quantity) + 1, updated_at: trx.raw('clock_timestamp()') }, '*');
            draft.put(STOCK, changed);
            await draft.think();
          },
          { isolationLevel: 'repeatable read' },
        );
      },
    ],
    abandon: [
      1,
      async (draft, worker) => {
        await db
          .transaction(async (trx) => {
            const author = await newAuthor(trx, draft, worker);
            await draft.think();
            await newBooks(trx, draft, worker, author, 2);
            throw new Abandoned();
          })
          .catch((error) => {
            if (!(error instanceof Abandoned)) throw error;
          });
        draft.undo();
      },
    ],
    event: [
      2,
      async (draft, worker) => {
        const row = { worker: worker.number, what: worker.name('alone') };
        const [event] = await db('events').insert(row).returning('*');
        draft.put(EVENTS, event);
      },
    ],
    clock: [
      2,
      async (draft, worker) => {
        await db.transaction(async (trx) => {
          const { rows } = await trx.raw("SELECT nextval('knex.ticket') AS ticket, gen_random_uuid() AS id");
          await draft.think();
          const what = `${worker.name('ticket')} ${rows[0].ticket}`;
          const [event] = await trx('events').insert({ id: rows[0].id, worker: worker.number, what }, '*');
          draft.put(EVENTS, event);
          await draft.think();
          const { rows: again } = await trx.raw("SELECT currval('knex.ticket') AS ticket, now() AS at");
          if (again[0].ticket !== rows[0].ticket)
            worker.wrongReads.push(`nextval was ${rows[0].ticket}, currval ${again[0].ticket}`);
          if (again[0].at.getTime() !== event.at.getTime())
            worker.wrongReads.push(`now() was ${event.at.toISOString()}, and later ${again[0].at.toISOString()}`);
        });
      },
    ],
    remove: [
      1,
      async (draft, worker) => {
        const author = worker.recent(AUTHORS);
        if (author === undefined) return;
        const doomed = worker.rows(BOOKS, (book) => book.author_id === author.id).slice(1);
        if (doomed.length === 0) return;
        const ids = doomed.map(({ id }) => id as string);
        const gone: Row[] = await db('books').whereIn('id', ids).del().returning('*');
        worker.compare(BOOKS, (row) => doomed.includes(row), gone);
        for (const book of doomed) draft.remove(BOOKS, book);
      },
    ],
    browse: [
      1,
      async (draft, worker) => {
        const author = worker.recent(AUTHORS);
        if (author === undefined) return;
        await db.transaction(
          async (trx) => {
            worker.compare(AUTHORS, ({ id }) => id === author.id, await trx('authors').where({ id: author.id }));
            await draft.think();
            const seen: Row[] = await trx('books').where({ author_id: author.id }).orderBy('id');
            worker.compare(BOOKS, (book) => book.author_id === author.id, seen);
          },
          { readOnly: true },
        );
      },
    ],
  };
  return {
    name: 'knex',
    tables: [AUTHORS, BOOKS, STOCK, EVENTS],
    operations,
    setup: async () => {
      await db.schema.createSchema('knex');
      await db.raw('CREATE SEQUENCE knex.ticket');
      await db.schema.createTable('authors', (table) => {
        table.bigIncrements('id');
        table.uuid('reference').notNullable().defaultTo(db.fn.uuid());
        table.integer('worker').notNullable();
        table.text('name').notNullable();
        table.integer('version').notNullable().defaultTo(1);
        table.timestamps(true, true);
      });
      await db.schema.createTable('books', (table) => {
        table.increments('id');
        table.bigInteger('author_id').notNullable().references('authors.id');
        table.text('title').notNullable();
        table.timestamp('created_at').notNullable().defaultTo(db.fn.now(6));
      });
      await db.schema.createTable('stock', (table) => {
        table.increments('id');
        table.integer('worker').notNullable();
        table.integer('slot').notNullable();
        table.integer('quantity').notNullable();
        table.timestamp('updated_at').notNullable().defaultTo(db.fn.now());
        table.unique(['worker', 'slot']);
      });
      await db.schema.createTable('events', (table) => {
        table.uuid('id').primary().defaultTo(db.fn.uuid());
        table.integer('worker').notNullable();
        table.text('what').notNullable();
        table.timestamp('at').notNullable().defaultTo(db.fn.now());
      });
    },
    close: () => db.destroy(),
  };
}

import { DataSource, type EntityManager, EntitySchema, OptimisticLockVersionMismatchError } from 'typeorm';
import type { App, AppContext, Draft, Row, Table, Worker } from './belief.js';

interface Author {
  id: string;
  reference: string;
  worker: number;
  name: string;
  version: number;
  createdAt: Date;
  updatedAt: Date;
  books: Book[];
}
interface Book {
  id: number;
  author: Author;
  title: string;
  createdAt: Date;
}
interface Stock {
  id: number;
  worker: number;
  slot: number;
  quantity: number;
  version: number;
  updatedAt: Date;
}
interface Happening {
  id: string;
  worker: number;
  what: string;
  at: Date;
}

const AuthorSchema = new EntitySchema<Author>({
  name: 'Author',
  tableName: 'authors',
  columns: {
    id: { type: 'bigint', primary: true, generated: 'increment' },
    reference: { type: 'uuid', generated: 'uuid' },
    worker: { type: 'int' },
    name: { type: 'text' },
    version: { type: 'int', version: true },
    createdAt: { type: 'timestamptz', createDate: true, name: 'created_at' },
    updatedAt: { type: 'timestamptz', updateDate: true, name: 'updated_at' },
  },
  relations: { books: { type: 'one-to-many', target: 'Book', inverseSide: 'author', cascade: true } },
});
const BookSchema = new EntitySchema<Book>({
  name: 'Book',
  tableName: 'books',
  columns: {
    id: { type: 'int', primary: true, generated: 'increment' },
    title: { type: 'text' },
    createdAt: { type: 'timestamptz', createDate: true, name: 'created_at' },
  },
  relations: {
    author: {
      type: 'many-to-one',
      target: 'Author',
      inverseSide: 'books',
      joinColumn: { name: 'author_id' },
      nullable: false,
      orphanedRowAction: 'delete',
    },
  },
});
const StockSchema = new EntitySchema<Stock>({
  name: 'Stock',
  tableName: 'stock',
  columns: {
    id: { type: 'int', primary: true, generated: 'increment' },
    worker: { type: 'int' },
    slot: { type: 'int' },
    quantity: { type: 'int' },
    version: { type: 'int', version: true },
    updatedAt: { type: 'timestamptz', updateDate: true, name: 'updated_at' },
  },
  uniques: [{ columns: ['worker', 'slot'] }],
});
const EventSchema = new EntitySchema<Happening>({
  name: 'Happening',
  tableName: 'events',
  columns: {
    id: { type: 'uuid', primary: true, generated: 'uuid' },
    worker: { type: 'int' },
    what: { type: 'text' },
    at: { type: 'timestamptz', createDate: true },
  },
});

const AUTHORS: Table = {
  name: 'authors',
  key: 'id',
  select: `SELECT id, reference, worker, name, version, created_at AS "createdAt", updated_at AS "updatedAt"
           FROM typeorm.authors`,
};
const BOOKS: Table = {
  name: 'books',
  key: 'id',
  select: `SELECT id, author_id AS "authorId", title, created_at AS "createdAt" FROM typeorm.books`,
};
const STOCK: Table = {
  name: 'stock',
  key: 'id',
  select: `SELECT id, worker, slot, quantity, version, updated_at AS "updatedAt" FROM typeorm.stock`,
};
const EVENTS: Table = { name: 'events', key: 'id', select: 'SELECT id, worker, what, at FROM typeorm.events' };

/** What the application throws to roll a transaction of its own back. */
class Abandoned extends Error {}

const authorRow = ({ books: _, ...author }: Author): Row => author;
const bookRow = (author: { id: string }, { id, title, createdAt }: Book): Row => {
  return { id, authorId: author.id, title, createdAt };
};

/** An application on TypeORM: a unit of work with cascades, version columns, savepoints of the QueryRunner. */
export function typeormApp({ port, connections, lost }: AppContext): App {
  const db = new DataSource({
    type: 'postgres',
    host: '127.0.0.1',
    port,
    username: 'postgres',
    database: 'postgres',
    schema: 'typeorm',
    entities: [AuthorSchema, BookSchema, StockSchema, EventSchema],
    uuidExtension: 'pgcrypto',
    installExtensions: false,
    poolErrorHandler: lost,
    extra: { max: connections },
  });

  const draftAuthor = (worker: Worker, books: number): Author => {
    const children = Array.from({ length: books }, () => ({ title: worker.name('book') }) as Book);
    return { worker: worker.number, name: worker.name('author'), books: children } as Author;
  };
  const saveAuthor = async (manager: EntityManager, draft: Draft, worker: Worker, books: number) => {
    const author = await manager.save(AuthorSchema, draftAuthor(worker, books));
    draft.put(AUTHORS, authorRow(author));
    for (const book of author.books) draft.put(BOOKS, bookRow(author, book));
    return author;
  };
  const saveBook = async (manager: EntityManager, draft: Draft, worker: Worker, author: Author) => {
    const book = await manager.save(BookSchema, { author, title: worker.name('book') } as Book);
    draft.put(BOOKS, bookRow(author, book));
  };
  /** Reads an author with its books, and compares. */
  const load = async (manager: EntityManager, worker: Worker, id: string): Promise<Author> => {
    const author = await manager.findOneOrFail(AuthorSchema, { where: { id }, relations: { books: true } });
    worker.compare(AUTHORS, (row) => row.id === id, [authorRow(author)]);
    worker.compare(
      BOOKS,
      (row) => row.authorId === id,
      author.books.map((book) => bookRow(author, book)),
    );
    return author;
  };

  const operations: App['operations'] = {
    /** Parent and children by one save(). */
    graph: [
      4,
      async (draft, worker) => {
        await db.transaction(async (manager) => {
          await saveAuthor(manager, draft, worker, 1 + worker.below(3));
          await draft.think();
          const event = await manager.save(EventSchema, {
            worker: worker.number,
            what: worker.name('graph'),
          } as Happening);
          draft.put(EVENTS, event as unknown as Row);
          await draft.think();
        });
      },
    ],
    /** The same without a transaction of the application's: save() opens one itself. */
    saveAlone: [2, async (draft, worker) => void (await saveAuthor(db.manager, draft, worker, 2))],
    /** Unit of work: a graph is read, changed here and there, and saved. */
    unit: [
      3,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction(async (manager) => {
          const author = await load(manager, worker, known.id as string);
          await draft.think();
          author.name = worker.name('renamed');
          const [gone] = author.books.length > 2 ? author.books.splice(0, 1) : [];
          if (author.books.length > 0) author.books[0].title = worker.name('retitled');
          author.books.push({ title: worker.name('added') } as Book);
          const lostId = gone?.id;
          await manager.save(AuthorSchema, author);
          if (lostId !== undefined) draft.remove(BOOKS, { id: lostId });
          draft.put(AUTHORS, authorRow(author));
          for (const book of author.books) draft.put(BOOKS, bookRow(author, book));
          await draft.think();
        });
      },
    ],
    savepoint: [
      2,
      async (draft, worker) => {
        const runner = db.createQueryRunner();
        try {
          await runner.startTransaction();
          const author = await saveAuthor(runner.manager, draft, worker, 1);
          await draft.think();
          const mark = draft.mark();
          await runner.startTransaction();
          await saveBook(runner.manager, draft, worker, author);
          await draft.think();
          await runner.rollbackTransaction();
          draft.undo(mark);
          await runner.startTransaction();
          await saveBook(runner.manager, draft, worker, author);
          await runner.commitTransaction();
          await draft.think();
          await runner.commitTransaction();
        } catch (error) {
          if (runner.isTransactionActive) await runner.rollbackTransaction();
          throw error;
        } finally {
          await runner.release();
        }
      },
    ],
    /** Nested transaction() calls, which are savepoints. */
    nested: [
      1,
      async (draft, worker) => {
        await db.transaction(async (manager) => {
          const author = await saveAuthor(manager, draft, worker, 0);
          await manager.transaction(async (inner) => {
            await saveBook(inner, draft, worker, author);
            await draft.think();
          });
          await saveBook(manager, draft, worker, author);
        });
      },
    ],
    upsert: [
      2,
      async (draft, worker) => {
        const run = async (manager: EntityManager) => {
          const values = { worker: worker.number, slot: worker.below(12), quantity: 1 + worker.below(9) };
          if (worker.below(2) === 0) {
            const { raw } = await manager
              .createQueryBuilder()
              .insert()
              .into(StockSchema)
              .values(values)
              .orUpdate(['quantity'], ['worker', 'slot'])
              .returning('*')
              .execute();
            const { updated_at: updatedAt, ...rest } = raw[0];
            draft.put(STOCK, { ...rest, updatedAt });
          } else {
            await manager.upsert(StockSchema, values, ['worker', 'slot']);
            await draft.think();
            const { worker: owner, slot } = values;
            const stored = await manager.findOneByOrFail(StockSchema, { worker: owner, slot });
            draft.put(STOCK, stored as unknown as Row);
          }
        };
        if (worker.below(3) === 0) return run(db.manager);
        await db.transaction(async (manager) => {
          await run(manager);
          await draft.think();
          await run(manager);
          await draft.think();
        });
      },
    ],
    /** Optimistic locking: the version that was read is demanded, and an old one is refused. */
    optimistic: [
      2,
      async (draft, worker) => {
        const known = worker.recent(STOCK) as Stock | undefined;
        if (known === undefined) return;
        const { id, version } = known;
        await db.transaction(async (manager) => {
          const row = await manager.findOneOrFail(StockSchema, {
            where: { id },
            lock: { mode: 'optimistic', version },
          });
          await draft.think();
          row.quantity += 1;
          await manager.save(StockSchema, row);
          draft.put(STOCK, row as unknown as Row);
          await draft.think();
          const stale = await manager
            .findOne(StockSchema, { where: { id }, lock: { mode: 'optimistic', version } })
            .catch((error) => error);
          if (!(stale instanceof OptimisticLockVersionMismatchError)) {
            if (stale instanceof Error) throw stale;
            throw new Error('an old version was not refused');
          }
        });
      },
    ],
    locked: [
      1,
      async (draft, worker) => {
        const known = worker.recent(STOCK) as Stock | undefined;
        if (known === undefined) return;
        await db.transaction(async (manager) => {
          const lock = { mode: 'pessimistic_write' as const };
          const row = await manager.findOneOrFail(StockSchema, { where: { id: known.id }, lock });
          worker.compare(STOCK, ({ id }) => id === known.id, [row as unknown as Row]);
          await draft.think();
          row.quantity += 1;
          await manager.save(StockSchema, row);
          draft.put(STOCK, row as unknown as Row);
        });
      },
    ],
    abandon: [
      1,
      async (draft, worker) => {
        await db
          .transaction(async (manager) => {
            await saveAuthor(manager, draft, worker, 2);
            await draft.think();
            throw new Abandoned();
          })
          .catch((error) => {
            if (!(error instanceof Abandoned)) throw error;
          });
        draft.undo();
      },
    ],
    remove: [
      1,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        const author = await load(db.manager, worker, known.id as string);
        if (author.books.length < 2) return;
        const doomed = author.books.slice(1);
        const ids = doomed.map(({ id }) => id);
        await db.manager.remove(BookSchema, doomed);
        for (const id of ids) draft.remove(BOOKS, { id });
      },
    ],
    browse: [
      1,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction(async (manager) => {
          await load(manager, worker, known.id as string);
          await draft.think();
          await load(manager, worker, known.id as string);
        });
      },
    ],
  };
  return {
    name: 'typeorm',
    tables: [AUTHORS, BOOKS, STOCK, EVENTS],
    operations,
    setup: async () => {
      await db.initialize();
      await db.query('CREATE SCHEMA typeorm');
      await db.synchronize();
    },
    close: () => db.destroy(),
  };
}

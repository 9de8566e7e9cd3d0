import {
  type CreationOptional,
  DataTypes,
  type InferAttributes,
  type InferCreationAttributes,
  type Model,
  OptimisticLockError,
  Sequelize,
  Transaction,
} from 'sequelize';
import type { App, AppContext, Draft, Row, Table, Worker } from './belief.js';

interface Author extends Model<InferAttributes<Author>, InferCreationAttributes<Author>> {
  id: CreationOptional<string>;
  reference: CreationOptional<string>;
  worker: number;
  name: string;
  visits: CreationOptional<number>;
  version: CreationOptional<number>;
  bornAt: CreationOptional<Date>;
  createdAt: CreationOptional<Date>;
  updatedAt: CreationOptional<Date>;
  books?: Book[];
}
interface Book extends Model<InferAttributes<Book>, InferCreationAttributes<Book>> {
  id: CreationOptional<number>;
  authorId: CreationOptional<string>;
  title: string;
  bornAt: CreationOptional<Date>;
}
interface Stock extends Model<InferAttributes<Stock>, InferCreationAttributes<Stock>> {
  id: CreationOptional<number>;
  worker: number;
  slot: number;
  quantity: number;
  createdAt: CreationOptional<Date>;
  updatedAt: CreationOptional<Date>;
}
interface Happening extends Model<InferAttributes<Happening>, InferCreationAttributes<Happening>> {
  id: CreationOptional<string>;
  worker: number;
  what: string;
  at: CreationOptional<Date>;
}

const AUTHORS: Table = { name: 'authors', key: 'id', select: 'SELECT * FROM sequelize.authors' };
const BOOKS: Table = { name: 'books', key: 'id', select: 'SELECT * FROM sequelize.books' };
const STOCK: Table = { name: 'stock', key: 'id', select: 'SELECT * FROM sequelize.stock' };
const EVENTS: Table = { name: 'events', key: 'id', select: 'SELECT * FROM sequelize.events' };

/** What the application throws to roll a transaction of its own back. */
class Abandoned extends Error {}

/** The row that a model instance stands for, without what it includes. */
function rowOf(instance: Model, table: Table): Row {
  const { books: _, ...row } = instance.get({ plain: true }) as Record<string, unknown>;
  if (row[table.key] === undefined) throw new Error(`sequelize gave no ${table.name}.${table.key}`);
  return row;
}

/** An application on Sequelize: include-creates, upsert, findCreateFind, optimistic locking, nested transactions. */
export function sequelizeApp({ port, connections, lost }: AppContext): App {
  const db = new Sequelize('postgres', 'postgres', '', {
    dialect: 'postgres',
    host: '127.0.0.1',
    port,
    logging: false,
    schema: 'sequelize',
    pool: { max: connections, min: 0 },
    hooks: {
      afterConnect: (connection) => {
        (connection as NodeJS.EventEmitter).on('error', lost);
      },
    },
  });
  // Anew for each column: Sequelize writes into what it is given.
  const moment = () => ({ type: DataTypes.DATE, allowNull: false, defaultValue: Sequelize.fn('now') });
  const uuid = () => ({ type: DataTypes.UUID, allowNull: false, defaultValue: Sequelize.fn('gen_random_uuid') });
  const options = { underscored: false, freezeTableName: true } as const;
  const authors = db.define<Author>(
    'authors',
    {
      id: { type: DataTypes.BIGINT, primaryKey: true, autoIncrement: true, autoIncrementIdentity: true },
      reference: uuid(),
      worker: { type: DataTypes.INTEGER, allowNull: false },
      name: { type: DataTypes.TEXT, allowNull: false },
      visits: { type: DataTypes.INTEGER, allowNull: false, defaultValue: 0 },
      version: { type: DataTypes.INTEGER, allowNull: false, defaultValue: 0 },
      bornAt: moment(),
      createdAt: DataTypes.DATE,
      updatedAt: DataTypes.DATE,
    },
    { ...options, version: true },
  );
  const books = db.define<Book>(
    'books',
    {
      id: { type: DataTypes.INTEGER, primaryKey: true, autoIncrement: true },
      authorId: { type: DataTypes.BIGINT, allowNull: false },
      title: { type: DataTypes.TEXT, allowNull: false },
      bornAt: moment(),
    },
    { ...options, timestamps: false },
  );
  const stock = db.define<Stock>(
    'stock',
    {
      id: { type: DataTypes.INTEGER, primaryKey: true, autoIncrement: true },
      worker: { type: DataTypes.INTEGER, allowNull: false, unique: 'place' },
      slot: { type: DataTypes.INTEGER, allowNull: false, unique: 'place' },
      quantity: { type: DataTypes.INTEGER, allowNull: false },
      createdAt: DataTypes.DATE,
      updatedAt: DataTypes.DATE,
    },
    options,
  );
  const events = db.define<Happening>(
    'events',
    {
      id: { ...uuid(), primaryKey: true },
      worker: { type: DataTypes.INTEGER, allowNull: false },
      what: { type: DataTypes.TEXT, allowNull: false },
      at: moment(),
    },
    { ...options, timestamps: false },
  );
  const written = authors.hasMany(books, { as: 'books', foreignKey: 'authorId' });
  books.belongsTo(authors, { as: 'author', foreignKey: 'authorId' });

  const newAuthor = async (transaction: Transaction, draft: Draft, worker: Worker, count: number) => {
    const children = Array.from({ length: count }, () => ({ title: worker.name('book') }));
    const author = await authors.create(
      { worker: worker.number, name: worker.name('author'), books: children } as never,
      { include: [written], transaction },
    );
    draft.put(AUTHORS, rowOf(author, AUTHORS));
    for (const book of author.books ?? []) draft.put(BOOKS, rowOf(book, BOOKS));
    return author;
  };
  const newBook = async (transaction: Transaction, draft: Draft, worker: Worker, author: Author) => {
    const book = await books.create({ authorId: author.id, title: worker.name('book') }, { transaction });
    draft.put(BOOKS, rowOf(book, BOOKS));
  };
  /** Reads an author with its books, and compares. */
  const load = async (worker: Worker, id: string, transaction?: Transaction): Promise<Author> => {
    const author = await authors.findByPk(id, { include: [written], transaction, rejectOnEmpty: true });
    worker.compare(AUTHORS, (row) => row.id === id, [rowOf(author, AUTHORS)]);
    worker.compare(
      BOOKS,
      (row) => row.authorId === id,
      author.books!.map((book) => rowOf(book, BOOKS)),
    );
    return author;
  };

  const operations: App['operations'] = {
    graph: [
      4,
      async (draft, worker) => {
        await db.transaction(async (transaction) => {
          await newAuthor(transaction, draft, worker, 1 + worker.below(3));
          await draft.think();
          const event = await events.create({ worker: worker.number, what: worker.name('graph') }, { transaction });
          draft.put(EVENTS, rowOf(event, EVENTS));
          await draft.think();
        });
      },
    ],
    savepoint: [
      2,
      async (draft, worker) => {
        await db.transaction(async (transaction) => {
          const author = await newAuthor(transaction, draft, worker, 1);
          await draft.think();
          const mark = draft.mark();
          await db
            .transaction({ transaction }, async (inner) => {
              await newBook(inner, draft, worker, author);
              await draft.think();
              throw new Abandoned();
            })
            .catch((error) => {
              if (!(error instanceof Abandoned)) throw error;
              draft.undo(mark);
            });
          await db.transaction({ transaction }, (inner) => newBook(inner, draft, worker, author));
          await draft.think();
          await newBook(transaction, draft, worker, author);
        });
      },
    ],
    bulk: [
      2,
      async (draft, worker) => {
        const run = async (authorId: string, transaction?: Transaction) => {
          const rows = Array.from({ length: 3 }, () => ({ authorId, title: worker.name('bulk') }));
          for (const book of await books.bulkCreate(rows, { transaction, returning: true }))
            draft.put(BOOKS, rowOf(book, BOOKS));
        };
        const known = worker.recent(AUTHORS);
        if (known !== undefined && worker.below(2) === 0) return run(known.id as string);
        await db.transaction(async (transaction) => {
          const author = await newAuthor(transaction, draft, worker, 0);
          await draft.think();
          await run(author.id, transaction);
          await draft.think();
        });
      },
    ],
    upsert: [
      2,
      async (draft, worker) => {
        const run = async (transaction?: Transaction) => {
          const values = { worker: worker.number, slot: worker.below(12), quantity: 1 + worker.below(9) };
          const conflictFields = ['worker', 'slot'] as const;
          const [row] = await stock.upsert(values, {
            returning: true,
            transaction,
            conflictFields: [...conflictFields],
          });
          draft.put(STOCK, rowOf(row, STOCK));
        };
        if (worker.below(3) === 0) return run();
        await db.transaction(async (transaction) => {
          await run(transaction);
          await draft.think();
          await run(transaction);
          await draft.think();
        });
      },
    ],
    /**
     * Not findOrCreate(), which inserts inside of a temporary function that it creates for the purpose: what a function's body draws
     * from a sequence cannot be given from outside, and a repetition diverges.
     */
    findCreateFind: [
      1,
      async (draft, worker) => {
        await db.transaction(async (transaction) => {
          const where = { worker: worker.number, slot: 100 + worker.below(60) };
          const [row, created] = await stock.findCreateFind({
            where,
            defaults: { ...where, quantity: 1 },
            transaction,
          });
          await draft.think();
          const known = worker.rows(STOCK, ({ slot }) => slot === where.slot);
          if (created === known.length > 0) worker.wrongReads.push(`slot ${where.slot} created: ${created}`);
          if (created) draft.put(STOCK, rowOf(row, STOCK));
          else worker.compare(STOCK, ({ slot }) => slot === where.slot, [rowOf(row, STOCK)]);
        });
      },
    ],
    /** Optimistic locking: two copies of one row; the second to be saved is refused. */
    optimistic: [
      3,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction(async (transaction) => {
          const author = await load(worker, known.id as string, transaction);
          const copy = await authors.findByPk(author.id, { transaction, rejectOnEmpty: true });
          await draft.think();
          await author.update({ name: worker.name('renamed') }, { transaction });
          draft.put(AUTHORS, rowOf(author, AUTHORS));
          await draft.think();
          const refused = await copy.update({ name: 'stale' }, { transaction }).catch((error) => error);
          if (!(refused instanceof OptimisticLockError)) {
            if (refused instanceof Error) throw refused;
            throw new Error('an old version was not refused');
          }
        });
      },
    ],
    increment: [
      1,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction({ isolationLevel: Transaction.ISOLATION_LEVELS.REPEATABLE_READ }, async (transaction) => {
          const lock = transaction.LOCK.UPDATE;
          const author = await authors.findByPk(known.id as string, { lock, transaction, rejectOnEmpty: true });
          await draft.think();
          await author.increment('visits', { transaction });
          await draft.think();
          await author.reload({ transaction });
          if (author.visits !== Number(known.visits) + 1)
            worker.wrongReads.push(`visits of ${author.id}: ${known.visits}, incremented to ${author.visits}`);
          draft.put(AUTHORS, rowOf(author, AUTHORS));
        });
      },
    ],
    event: [
      2,
      async (draft, worker) => {
        const event = await events.create({ worker: worker.number, what: worker.name('alone') });
        draft.put(EVENTS, rowOf(event, EVENTS));
      },
    ],
    /** A transaction that the application ends itself, not a callback. */
    abandon: [
      1,
      async (draft, worker) => {
        const transaction = await db.transaction();
        try {
          await newAuthor(transaction, draft, worker, 2);
          await draft.think();
        } finally {
          await transaction.rollback();
        }
        draft.undo();
      },
    ],
    remove: [
      1,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        await db.transaction(async (transaction) => {
          const author = await load(worker, known.id as string, transaction);
          for (const book of author.books!.slice(2)) {
            await book.destroy({ transaction });
            draft.remove(BOOKS, rowOf(book, BOOKS));
          }
          await draft.think();
        });
      },
    ],
    browse: [
      1,
      async (draft, worker) => {
        const known = worker.recent(AUTHORS);
        if (known === undefined) return;
        if (worker.below(2) === 0) return void (await load(worker, known.id as string));
        await db.transaction(async (transaction) => {
          await load(worker, known.id as string, transaction);
          await draft.think();
          await load(worker, known.id as string, transaction);
        });
      },
    ],
  };
  return {
    name: 'sequelize',
    tables: [AUTHORS, BOOKS, STOCK, EVENTS],
    operations,
    setup: async () => {
      await db.createSchema('sequelize', {});
      await db.sync();
    },
    close: () => db.close(),
  };
}

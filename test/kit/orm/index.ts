import type { App, AppContext } from './belief.js';
import { drizzleApp } from './drizzle.js';
import { knexApp } from './knex.js';
import { sequelizeApp } from './sequelize.js';
import { typeormApp } from './typeorm.js';

/** The applications, each on an ORM of its own. */
export const APPS: Readonly<Record<string, (context: AppContext) => App>> = {
  drizzle: drizzleApp,
  typeorm: typeormApp,
  sequelize: sequelizeApp,
  knex: knexApp,
};

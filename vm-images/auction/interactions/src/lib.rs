//! The 27 page interactions of RUBiS: their names, methods, paths and parameters, and how much the pages show.
//!
//! The one place that knows them: the service routes by this table, and the emulated clients build their
//! requests from it. It needs nothing but the standard library, and does not know what a page says.

/// How many categories there are, numbered from 1.
pub const CATEGORIES: u64 = 20;
/// How many regions there are, numbered from 1.
pub const REGIONS: u64 = 62;
/// The most rows that any list shows.
pub const LIST_ROWS_MAX: usize = 25;

/// An HTTP method the service answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Parameters in the query; reads only.
    Get,
    /// Parameters in a form-encoded body; writes.
    Post,
}

impl Method {
    /// The method as it stands in a request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// A parameter of an interaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name in the query or in the form.
    pub name: &'static str,
    /// Whether the page is refused (400, `missing-parameter`) without it.
    pub required: bool,
}

/// A page interaction, in the order of the columns of RUBiS's transition tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Interaction {
    /// The first page.
    Home,
    /// The form for a new user.
    Register,
    /// Creates a user.
    RegisterUser,
    /// The choice between categories and regions.
    Browse,
    /// All categories.
    BrowseCategories,
    /// Items on sale in one category.
    SearchItemsInCategory,
    /// All regions.
    BrowseRegions,
    /// All categories, to search in one region.
    BrowseCategoriesInRegion,
    /// Items on sale in one category and region.
    SearchItemsInRegion,
    /// One item.
    ViewItem,
    /// One user with the comments on them.
    ViewUserInfo,
    /// The bids on one item.
    ViewBidHistory,
    /// Asks who wants to buy at the fixed price.
    BuyNowAuth,
    /// The form for buying at the fixed price.
    BuyNow,
    /// Buys at the fixed price.
    StoreBuyNow,
    /// Asks who wants to bid.
    PutBidAuth,
    /// The form for a bid.
    PutBid,
    /// Places a bid.
    StoreBid,
    /// Asks who wants to comment.
    PutCommentAuth,
    /// The form for a comment.
    PutComment,
    /// Stores a comment on a user.
    StoreComment,
    /// Asks who wants to sell.
    Sell,
    /// All categories, to sell in one of them.
    SelectCategoryToSellItem,
    /// The form for a new item.
    SellItemForm,
    /// Puts an item on sale.
    RegisterItem,
    /// Asks whose page to show.
    AboutMeAuth,
    /// A user's own bids, purchases, sales and comments.
    AboutMe,
}

/// What the table below says about one interaction.
struct Entry {
    interaction: Interaction,
    name: &'static str,
    method: Method,
    path: &'static str,
    parameters: &'static [Parameter],
}

const fn required(name: &'static str) -> Parameter {
    Parameter {
        name,
        required: true,
    }
}

const fn optional(name: &'static str) -> Parameter {
    Parameter {
        name,
        required: false,
    }
}

const NICKNAME: Parameter = required("nickname");
const PASSWORD: Parameter = required("password");

/// `[Entry; 27]` from lines of `Interaction, method, path, [parameters]`.
macro_rules! table {
    ($($interaction:ident $method:ident $path:literal [$($parameter:expr),*];)*) => {
        [$(Entry {
            interaction: Interaction::$interaction,
            name: stringify!($interaction),
            method: Method::$method,
            path: $path,
            parameters: &[$($parameter),*],
        }),*]
    };
}

static TABLE: [Entry; 27] = table! {
    Home                     Get  "/" [];
    Register                 Get  "/register" [];
    RegisterUser             Post "/register" [required("firstname"), required("lastname"), NICKNAME, PASSWORD, required("email"), required("region")];
    Browse                   Get  "/browse" [];
    BrowseCategories         Get  "/categories" [];
    SearchItemsInCategory    Get  "/category" [required("id"), optional("page")];
    BrowseRegions            Get  "/regions" [];
    BrowseCategoriesInRegion Get  "/region" [required("id")];
    SearchItemsInRegion      Get  "/region/items" [required("region"), required("category"), optional("page")];
    ViewItem                 Get  "/item" [required("id")];
    ViewUserInfo             Get  "/user" [required("id")];
    ViewBidHistory           Get  "/item/bids" [required("id")];
    BuyNowAuth               Get  "/buy-now/login" [required("item")];
    BuyNow                   Get  "/buy-now" [required("item"), NICKNAME, PASSWORD];
    StoreBuyNow              Post "/buy-now" [required("item"), NICKNAME, PASSWORD, required("quantity")];
    PutBidAuth               Get  "/bid/login" [required("item")];
    PutBid                   Get  "/bid" [required("item"), NICKNAME, PASSWORD];
    StoreBid                 Post "/bid" [required("item"), NICKNAME, PASSWORD, required("bid"), optional("max_bid"), optional("quantity")];
    PutCommentAuth           Get  "/comment/login" [required("item"), required("to")];
    PutComment               Get  "/comment" [required("item"), required("to"), NICKNAME, PASSWORD];
    StoreComment             Post "/comment" [required("item"), required("to"), NICKNAME, PASSWORD, required("rating"), required("comment")];
    Sell                     Get  "/sell" [];
    SelectCategoryToSellItem Get  "/sell/category" [NICKNAME, PASSWORD];
    SellItemForm             Get  "/sell/item" [required("category"), NICKNAME, PASSWORD];
    RegisterItem             Post "/sell/item" [required("category"), NICKNAME, PASSWORD, required("name"), optional("description"), required("initial_price"), optional("reserve_price"), optional("buy_now"), required("quantity"), required("duration")];
    AboutMeAuth              Get  "/about-me/login" [];
    AboutMe                  Get  "/about-me" [NICKNAME, PASSWORD];
};

impl Interaction {
    /// All of them, in the order of the columns of RUBiS's transition tables.
    pub const ALL: [Self; 27] = {
        let mut all = [Self::Home; 27];
        let mut i = 0;
        while i < all.len() {
            all[i] = TABLE[i].interaction;
            i += 1;
        }
        all
    };

    fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }

    /// The name, which the page repeats as `data-page`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The method of the request.
    #[must_use]
    pub fn method(self) -> Method {
        self.entry().method
    }

    /// The path of the request, without the query.
    #[must_use]
    pub fn path(self) -> &'static str {
        self.entry().path
    }

    /// The parameters of the request: of the query for GET, of the form for POST.
    #[must_use]
    pub fn parameters(self) -> &'static [Parameter] {
        self.entry().parameters
    }

    /// Whether the interaction modifies the database, which exactly the POST requests do.
    #[must_use]
    pub fn is_write(self) -> bool {
        self.method() == Method::Post
    }

    /// The interaction that `method` (as in a request line) and `path` (without the query) ask for. `HEAD` asks for the
    /// same as `GET`; that its page is not sent is the server's matter.
    ///
    /// # Errors
    /// [`NoRoute`] says whether the path or the method is at fault.
    pub fn find(method: &str, path: &str) -> Result<Self, NoRoute> {
        let method = if method == "HEAD" { "GET" } else { method };
        let mut allowed = None;
        for entry in TABLE.iter().filter(|entry| entry.path == path) {
            if entry.method.as_str() == method {
                return Ok(entry.interaction);
            }
            allowed = Some(match (allowed, entry.method) {
                (None, Method::Get) => "GET, HEAD",
                (None, Method::Post) => "POST",
                (Some(_), _) => "GET, HEAD, POST",
            });
        }
        Err(allowed.map_or(NoRoute::Path, |allowed| NoRoute::Method { allowed }))
    }
}

/// Why a request leads to no interaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No interaction has the path.
    Path,
    /// The path exists, with another method.
    Method {
        /// The methods that the path has, as in an `Allow` header.
        allowed: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enumeration() {
        for (i, interaction) in Interaction::ALL.into_iter().enumerate() {
            assert_eq!(interaction as usize, i);
        }
    }

    #[test]
    fn every_interaction_is_found_by_its_method_and_path() {
        for interaction in Interaction::ALL {
            let found = Interaction::find(interaction.method().as_str(), interaction.path());
            assert_eq!(found, Ok(interaction));
            let head = Interaction::find("HEAD", interaction.path());
            let get = Interaction::find("GET", interaction.path());
            assert_eq!(head, get);
        }
    }

    #[test]
    fn another_path_or_method_is_told_apart() {
        assert_eq!(Interaction::find("GET", "/nowhere"), Err(NoRoute::Path));
        assert_eq!(
            Interaction::find("POST", "/item"),
            Err(NoRoute::Method {
                allowed: "GET, HEAD"
            })
        );
        assert_eq!(
            Interaction::find("PUT", "/bid"),
            Err(NoRoute::Method {
                allowed: "GET, HEAD, POST"
            })
        );
    }

    #[test]
    fn five_interactions_write() {
        let writes = Interaction::ALL.iter().filter(|i| i.is_write()).count();
        assert_eq!(writes, 5);
    }
}
